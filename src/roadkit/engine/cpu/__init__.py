"""What only the CPU has: weights packed for the C kernels, and whole parts of a decoder fused into one call."""
