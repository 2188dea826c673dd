"""The experiments, one a file; each keeps its finished runs in the ledger."""
