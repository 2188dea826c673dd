"""What a run leaves: the adapter's directory, its model card, its figures, and how it compares with the base."""
