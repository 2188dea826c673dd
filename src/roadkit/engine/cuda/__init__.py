"""What only CUDA has: decode steps of fixed shape, captured as graphs, and their attention.

from roadkit.engine.cuda.static_decode import StaticDecode
"""
