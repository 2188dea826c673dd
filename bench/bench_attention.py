"""A training step with torch's fused attention and with the plain one, by length in 16 bits, and in 32."""

from __future__ import annotations

import torch
from harness import measure, ratio

from roadkit.models import load_causal
from roadkit.train.model.attention import FUSED, PLAIN
from roadkit.train.model.trainable import make_trainable
from roadkit.train.recipe import Recipe

SHAPES = {  # rows, tokens
    torch.bfloat16: ((8, 64), (4, 128), (4, 192), (4, 256), (2, 512)),
    torch.float32: ((4, 256),),
}
MODEL = "smollm2"


def run(rounds: int = 5) -> dict:
    """Seconds and MB (10^6) that autograd keeps, of each attention; `fused_over_plain` above 1: the plain one wins."""
    table = {}
    for dtype, shapes in SHAPES.items():
        model = load_causal(MODEL, dtype=dtype)
        tuned = make_trainable(model, Recipe(model=MODEL, data="", output="")).train()
        for rows, tokens in shapes:
            ids = torch.randint(5, 1000, (rows, tokens))
            sides = {name: Step(tuned, model, ids, name) for name in (FUSED, PLAIN)}
            measured = measure(sides, rounds=rounds)
            table[f"{str(dtype).removeprefix('torch.')}, {rows} x {tokens}"] = {
                "seconds": measured,
                "fused_over_plain": ratio(measured, FUSED, PLAIN),
                "kept_mb": {name: round(step.kept() / 1e6) for name, step in sides.items()},
            }
    return {"bench": "attention", "model": MODEL, "threads": torch.get_num_threads(), "rounds": rounds, "table": table}


class Step:
    """Forward and backward of the blocks; the head costs the same with either attention."""

    def __init__(self, tuned: torch.nn.Module, model, ids: torch.Tensor, attention: str):
        self.tuned, self.model, self.ids, self.attention = tuned, model, ids, attention

    def __call__(self) -> None:
        self._forward().backward()

    def kept(self) -> int:
        """Bytes of the distinct storages that autograd saves, the weights' not counted."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.tuned.parameters()}
        found: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # an output that its own node saves would keep the graph alive

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self._forward()
        return sum(found.values())

    def _forward(self) -> torch.Tensor:
        self.model.set_attn_implementation(self.attention)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.model.dtype == torch.bfloat16):
            states = self.model.model(input_ids=self.ids, attention_mask=torch.ones_like(self.ids)).last_hidden_state
        return states.float().square().mean()
