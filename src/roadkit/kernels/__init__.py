"""The rotation of rows and its gradient: a loop as reference, torch, C for the CPU, Triton for the GPU.

from roadkit.kernels import rotate_rows
z = rotate_rows(h, rows, a, b, group_size)
"""

from .rows import rotate_rows as rotate_rows
