"""What adapters do, as rows of numbers (`geometry`) and as figures (`figures`)."""
