"""rotate_rows on mixed rows: the fused operator against plain torch, and against copying the tensor."""

import torch
from harness import measure, ratio

from roadkit.kernels.rows import backend_for, rotate_rows, rotate_rows_torch


def run(rounds: int = 9) -> dict:
    rows_of = {}
    figures: dict = {"backend": backend_for("cpu")}
    for count, width, repeat in ((8, 576, 2000), (8, 1536, 2000), (64, 1536, 500), (4096, 1536, 5)):
        h = torch.randn(count, width)
        rows = torch.arange(count) % 8
        a, b = torch.randn(9, width), torch.randn(9, width)
        planes = b.unsqueeze(0)
        sides = {
            "fused": lambda: rotate_rows(h, rows, a, b, 64),
            "torch": lambda: rotate_rows_torch(h, rows, a, planes, (64,)),
            "copy": lambda: h.clone(),
        }
        measured = measure(sides, rounds=rounds, repeat=repeat)
        rows_of |= {f"{count}x{width} {name}": row for name, row in measured.items()}
        figures[f"torch_over_fused_{count}x{width}"] = ratio(measured, "torch", "fused")
        figures[f"fused_over_copy_{count}x{width}"] = ratio(measured, "fused", "copy")
    return {"seconds": rows_of, **figures}
