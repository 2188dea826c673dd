"""Tables and figures, rebuilt from the ledgers alone: `python -m paper report`."""
