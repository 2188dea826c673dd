"""Whether the rows of a packed sequence are kept apart by a model's attention.

check_isolated(trainer, encoded.examples)        # RecipeError if one row changes what the model says about the next
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import Trainer

from ...errors import RecipeError

MAX_LEAK = 1e-3  # relative; the same shapes are computed twice, so rows that are apart give the same numbers


@torch.no_grad()
def check_isolated(trainer: Trainer, rows: Sequence[Mapping[str, Any]]) -> None:
    """Change one row of a packed sequence and compare what the model says about the next row.

    Raises `RecipeError` for a model whose attention lets it see the other row: it must take positions that start anew for
    the beginning of another sequence.
    """
    first, second = (list(row["input_ids"])[:32] for row in (rows[0], rows[-1]))
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.eval()
    outputs = []
    for before in (first, first[::-1]):
        packed = {"input_ids": before + second, "labels": before + second, "seq_lengths": [len(before), len(second)]}
        batch = trainer._prepare_inputs(trainer.data_collator([packed]))  # type: ignore[arg-type]
        rest = {key: value for key, value in batch.items() if key != "labels"}
        with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
            outputs.append(model(**rest, use_cache=False).logits[0, len(before) :].float())
    change = float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max())
    if first != first[::-1] and change > MAX_LEAK:
        implementation = getattr(model.config, "_attn_implementation", "unknown")
        raise RecipeError(
            f"packing: rows of one sequence see each other in this model ({type(model.get_base_model()).__name__}, "
            f"attention {implementation}): changing one row moved the next one's outputs by {change:.1%}. "
            "Set packing: false; group_by_length: true saves padding too"
        )
