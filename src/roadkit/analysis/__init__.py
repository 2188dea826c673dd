"""What adapters do, as rows of numbers and as figures."""
