"""What only the CPU has: weights packed for the C kernels, parts of a decoder fused into one call, attention in C.

from roadkit.engine.cpu.fuse import fuse
"""
