"""What only CUDA has: decode steps of fixed shape, captured as graphs."""
