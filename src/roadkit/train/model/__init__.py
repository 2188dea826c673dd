"""The model that is trained: its rotations and heads, its attention, its loss."""
