"""Size of the model: RoAd1's trainable parameters at the shapes of published models, and the price of a training step.

    run_size(Ledger(path))       # counts on torch's meta device, without weights; steps on small random models

Every linear layer of the blocks is adapted, as everywhere in roadkit. Heads count neither as the adapter's nor as the model's.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from roadkit.train.model.targets import head_names
from roadkit.train.recipe import Recipe

from ..ledger import Ledger
from ..tuning.methods import find_method, num_trainable
from .jobs import Job, log, run_jobs

COUNTED = ("road_1", "lora")


@dataclass(frozen=True)
class ModelShape:
    """The part of a Llama's or RoBERTa's configuration that decides how many parameters it has."""

    family: str
    hidden: int
    intermediate: int
    blocks: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False

    def build(self) -> PreTrainedModel:
        """A model with random weights; without any under `torch.device("meta")`."""
        shared: dict[str, Any] = {
            "hidden_size": self.hidden, "intermediate_size": self.intermediate, "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads, "vocab_size": self.vocabulary,
        }  # fmt: skip
        if self.family == "roberta":
            config = RobertaConfig(max_position_embeddings=514, type_vocab_size=1, **shared)
            return RobertaForSequenceClassification(config)
        return LlamaForCausalLM(LlamaConfig(num_key_value_heads=self.kv_heads, tie_word_embeddings=self.tied, **shared))

    @property
    def recipe(self) -> Recipe:
        """A recipe for methods to read. Counts and times do not depend on its group size, which must divide every width."""
        task = "classification" if self.family == "roberta" else "causal"
        return Recipe(model="random", data="noise", output="", task=task, group_size=64)


PUBLISHED = {
    "RoBERTa-base": ModelShape("roberta", 768, 3072, 12, 12, 12, 50265),
    "RoBERTa-large": ModelShape("roberta", 1024, 4096, 24, 16, 16, 50265),
    "SmolLM2 135M": ModelShape("llama", 576, 1536, 30, 9, 3, 49152, tied=True),
    "TinyLlama 1.1B": ModelShape("llama", 2048, 5632, 22, 32, 4, 32000),
    "LLaMA 7B": ModelShape("llama", 4096, 11008, 32, 32, 32, 32000),
    "LLaMA 13B": ModelShape("llama", 5120, 13824, 40, 40, 40, 32000),
    "Llama 2 70B": ModelShape("llama", 8192, 28672, 80, 64, 8, 32000),
}
TIMED = (
    ModelShape("llama", 256, 768, 4, 4, 4, 1024),
    ModelShape("llama", 576, 1536, 12, 9, 3, 1024),
    ModelShape("llama", 768, 2048, 16, 12, 12, 1024),
)


@dataclass(frozen=True)
class StepTiming:
    """How training steps are timed: the size of a batch of noise, and the number of rounds."""

    batch: int = 4
    tokens: int = 128
    rounds: int = 9


def run_size(
    ledger: Ledger,
    *,
    published: Mapping[str, ModelShape] = PUBLISHED,
    timed: tuple[ModelShape, ...] = TIMED,
    timing: StepTiming | None = None,
    seed: int = 0,
    budget: float | None = None,
    progress: Callable[[str], None] = log.info,
) -> int:
    """Count and time what the ledger lacks; → how many runs the budget left out.

    seed   tells repetitions of timings apart
    """
    chosen = timing or StepTiming()

    def jobs() -> Iterator[Job]:
        for name, shape in published.items():
            setup = {"experiment": "size", "measure": "count", "model": name, **asdict(shape)}
            yield Job(f"size, {name}", setup, 0, partial(counts, shape))
        for shape in timed:
            setup = {"experiment": "size", "measure": "step", **asdict(shape), **asdict(chosen)}
            label = f"size, a step at width {shape.hidden}, {shape.blocks} blocks"
            yield Job(label, setup, seed, partial(time_steps, shape, chosen, seed))

    return run_jobs(jobs(), ledger, budget=budget, progress=progress)


def counts(shape: ModelShape) -> dict[str, int]:
    """{"parameters": the model's, method: its trainable ones}. No memory is taken for any of them."""
    found: dict[str, int] = {}
    for method in COUNTED:
        with torch.device("meta"):
            model = shape.build()
            heads = tuple(f"{name}." for name in head_names(model, shape.recipe))
            found["parameters"] = sum(
                parameter.numel() for name, parameter in model.named_parameters() if not name.startswith(heads)
            )
            found[method] = num_trainable(
                find_method(method).tune(model, shape.recipe), head_names(model, shape.recipe)
            )
    return found


def time_steps(shape: ModelShape, timing: StepTiming, seed: int) -> dict[str, Any]:
    """How long a step with RoAd1 takes, relative to its floor: the frozen model's forward and backward pass.

    Both have the same weights. In every round the floor is timed before and after the step, so that a busy machine slows
    both alike.
    """
    torch.manual_seed(seed)
    base = shape.build().requires_grad_(False)
    ids = torch.randint(shape.vocabulary, (timing.batch, timing.tokens))
    tuned = find_method("road_1").tune(_sharing(base), shape.recipe)
    base.enable_input_require_grads()
    sides = _stepper(base, ids), _stepper(tuned, ids)
    for side in sides:
        side()
    floors, steps, ratios = [sides[0]()], [], []
    for _ in range(timing.rounds):
        steps.append(sides[1]())
        floors.append(sides[0]())
        ratios.append(steps[-1] / statistics.mean(floors[-2:]))
    return {
        "parameters": sum(parameter.numel() for parameter in base.parameters()),
        "road_1": num_trainable(tuned),
        "floor_s": round(statistics.median(floors), 4),
        "step_s": round(statistics.median(steps), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
    }


def _sharing(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with the same weights in the same memory."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def _stepper(model: nn.Module, ids: Tensor) -> Callable[[], float]:
    """A function that does a training step on a batch and returns its seconds."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True) if trained else None

    def step() -> float:
        start = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - start

    return step
