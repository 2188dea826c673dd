"""The paper's experiments and ours, each a command of `roadkit reproduce`, with a ledger of finished runs."""
