"""Tables and figures, rebuilt from the ledger alone."""
