"""The methods that the paper compares: how each is tuned, and how a tuned model answers."""
