"""The model that is trained: its base, its rotations and heads, its attention and its loss."""
