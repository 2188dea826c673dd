"""Training runs: one adapter, many at once, or a preview that trains nothing."""
