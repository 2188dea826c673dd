"""The embedded engine: request → sequence → scheduler → runner → bank and kernels → stream.

from roadkit.engine.engine import Engine
"""
