"""What adapters do, and what fine-tuning does to representations, as rows of numbers and as figures."""
