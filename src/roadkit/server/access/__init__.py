"""Who may do what: API keys, the guard in front of every route, quotas."""
