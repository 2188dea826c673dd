"""What a run leaves: the adapter's directory, its model card and its figures; and what reads it back."""
