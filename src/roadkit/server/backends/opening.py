"""Which backend a model needs: decoders generate, encoders give vectors and labels.

backend = open_backend("minilm", max_batch=32)
"""

from __future__ import annotations

from ... import models
from ...engine.cpu.packed import Weights
from ..settings import Limits
from .embedded import EmbeddedEngine
from .encoder import EncoderEngine

TEXTS = 8  # that may wait at an encoder for each request that may wait at a decoder


def open_backend(
    model: str,
    *,
    max_batch: int = 32,
    max_queue: int = 256,
    max_context: int | None = None,
    cache_gib: float = 1.0,
    weights: Weights | None = None,
    num_labels: int | None = None,
    device: str | None = None,
) -> EmbeddedEngine | EncoderEngine:
    """Load a base model, on the GPU where there is one and no `device` is named.

    `num_labels` gives an encoder a head for adapters that bring theirs; the base has none then.
    """
    if models.is_encoder(model):
        config = models.load_config(model)
        names = config.architectures
        own_head = any(name.endswith("ForSequenceClassification") for name in names)
        labels = num_labels or (config.num_labels if own_head else None)
        return EncoderEngine(
            models.load_encoder(model, num_labels=labels, device=models.best_device(device)),
            models.load_tokenizer(model),
            max_batch=max_batch,
            max_queue=max(TEXTS * max_queue, 2 * Limits().max_inputs),  # half of it takes a whole request
            own_head=own_head,
        )
    from ...engine.engine import Engine

    engine = Engine.from_pretrained(
        model, device=device, max_batch=max_batch, max_context=max_context, cache_gib=cache_gib, weights=weights
    )
    return EmbeddedEngine(engine, max_queue=max_queue, max_queue_per_tenant=max(1, max_queue // 2))
