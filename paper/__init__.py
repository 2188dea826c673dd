"""The paper's experiments and ours, each a command of `python -m paper`, with a ledger of finished runs."""
