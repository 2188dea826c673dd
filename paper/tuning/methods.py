"""The methods that the paper compares: how each makes a base model trainable, and the learning rates it is given.

    tuned = METHODS["lora"].tune(model, recipe)       # in place, like every PEFT method
    num_trainable(tuned, heads)                       # heads not counted, as in the paper

RoAd goes through `roadkit.train`, the others through PEFT. Every method gets the same number of learning rates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from roadkit.errors import RecipeError, nearest
from roadkit.train.model.targets import head_names, in_heads, target_layers
from roadkit.train.model.trainable import make_trainable
from roadkit.train.recipe import Recipe

QUERY_AND_VALUE = ("query", "value", "q_proj", "v_proj")
LLM_ADAPTERS = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")  # layers with a LoRA in LLM-Adapters and DoRA
FIRST_OF_MLP = ("intermediate.dense", "fc1", "up_proj", "gate_proj", "c_fc")  # the paper's "fc1", by model family
SECOND_OF_MLP = ("down_proj", "fc2", "c_proj", "output.dense")
RANK = 8

NEIGHBOURS, FAR = 2, 64  # group sizes: the paper's pairs, and roadkit's own

Tune = Callable[[PreTrainedModel, Recipe], nn.Module]


@dataclass(frozen=True)
class LayerChoice:
    """Some of a model's adapted layers, chosen by their names. `name` describes them in messages."""

    name: str
    has: Callable[[str], bool]

    @classmethod
    def ending(cls, names: tuple[str, ...]) -> LayerChoice:
        return cls(f"layer called {', '.join(names)}", lambda name: name.endswith(names))

    def among(self, layers: Iterable[str], model: PreTrainedModel) -> list[str]:
        """Raises `RecipeError` if there is none."""
        if not (found := [name for name in layers if self.has(name)]):
            raise RecipeError(f"{type(model).__name__} has no {self.name}")
        return found


MLP_FIRST = LayerChoice.ending(FIRST_OF_MLP)
ATTENTION = LayerChoice("layer of an attention", lambda name: "attention" in name or "attn" in name)


@dataclass(frozen=True)
class Method:
    """One way of training.

    label   its name in tables
    rates   four learning rates: for RoAd the paper's (§C.1), for other methods about a decade around the usual one
    tune    makes a model trainable, in place; → the model to train
    small   rates for the small scale's models and few steps; empty: the same
    """

    label: str
    rates: tuple[float, ...]
    tune: Tune
    small: tuple[float, ...] = ()

    def rates_at(self, scale: str, count: int) -> tuple[float, ...]:
        """`count` of the scale's four rates a < b < c < d: (b), (b, c), (b, c, d), (b, c, d, a)."""
        a, b, c, d = self.small if self.small and scale == "small" else self.rates
        return (b, c, d, a)[:count]


def find_method(name: str) -> Method:
    """Raises `RecipeError` with the nearest name."""
    if name not in ALL_METHODS:
        raise RecipeError(f"no method {name!r}{nearest(name, ALL_METHODS)}; there are {', '.join(ALL_METHODS)}")
    return ALL_METHODS[name]


def num_trainable(model: nn.Module, heads: Sequence[str] = ()) -> int:
    """Trainable parameters outside the heads."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not in_heads(name, heads)
    )


def _road(variant: str, *, layers: LayerChoice | None = None, other_pairs: bool = False) -> Tune:
    """RoAd on every linear layer, or on `layers`.

    other_pairs   pairs channels far apart if the recipe pairs neighbours, and neighbours if it pairs channels far apart
    """

    def apply(model: PreTrainedModel, recipe: Recipe) -> nn.Module:
        changes: dict[str, Any] = {"variant": variant}
        if layers is not None:
            changes["target_modules"] = layers.among(target_layers(model, recipe), model)
        if other_pairs:
            changes["group_size"] = FAR if recipe.group_size == NEIGHBOURS else NEIGHBOURS
        return make_trainable(model, Recipe(**recipe.model_dump() | changes))

    return apply


def _peft(config: str, *, layers: LayerChoice | None = None, **options: Any) -> Tune:
    """A PEFT method on the layers that RoAd rotates, or on `layers` of them.

    config   the name of its configuration's class in PEFT, which takes `options`
    """

    def apply(model: PreTrainedModel, recipe: Recipe) -> nn.Module:
        import peft

        targets, heads = list(target_layers(model, recipe)), head_names(model, recipe)
        targets = targets if layers is None else layers.among(targets, model)
        make = getattr(peft, config)
        return peft.get_peft_model(model, make(target_modules=targets, modules_to_save=heads or None, **options))

    return apply


def _ia3(model: PreTrainedModel, recipe: Recipe) -> nn.Module:
    """(IA)³ scales keys, values and the inputs of the second MLP layer; in decoders every layer, as in §C.2."""
    from peft import IA3Config, get_peft_model

    layers, heads = list(target_layers(model, recipe)), head_names(model, recipe)
    second = [name for name in layers if name.endswith(SECOND_OF_MLP) and "attention" not in name]
    if recipe.task != "causal":
        layers = LayerChoice.ending(("key", "value", "k_proj", "v_proj")).among(layers, model) + second
    config = IA3Config(target_modules=layers, feedforward_modules=second, modules_to_save=heads or None)
    return get_peft_model(model, config)


def _prefix(model: PreTrainedModel, recipe: Recipe) -> nn.Module:
    from peft import PrefixTuningConfig, TaskType, get_peft_model

    kind = TaskType.CAUSAL_LM if recipe.task == "causal" else TaskType.SEQ_CLS
    heads = head_names(model, recipe)
    tuned = get_peft_model(model, PrefixTuningConfig(num_virtual_tokens=20, task_type=kind))
    for name, parameter in tuned.named_parameters():  # of the heads PEFT trains the classifier alone
        if in_heads(name, heads) and ".original_module." not in name:
            parameter.requires_grad_(True)
    return tuned


def _only(keep: Callable[[str], bool]) -> Tune:
    """Trains parameters of the base model itself: those whose names `keep` accepts, and the heads."""

    def apply(model: PreTrainedModel, recipe: Recipe) -> nn.Module:
        heads = head_names(model, recipe)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(keep(name) or in_heads(name, heads))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise RecipeError(f"{type(model).__name__} has nothing that this method trains: neither head nor biases")
        return model

    return apply


ROAD_RATES = (1e-3, 3e-3, 5e-3, 7e-3)  # the paper's
USUAL_RATES = (5e-4, 1e-3, 2e-3, 4e-3)
LLM_RATES = (1e-4, 3e-4, 1e-3, 2e-3)  # around LLM-Adapters' for LoRA
# At small scale, around the best of a first search:
TURNING_RATES = (2e-3, 5e-3, 1e-2, 2e-2)
SCALING_RATES = (5e-3, 1e-2, 2e-2, 5e-2)
ADDING_RATES = (2e-4, 5e-4, 1e-3, 2e-3)


def _lora(
    label: str, *, rank: int = RANK, alpha: int | None = None, rates: tuple[float, ...] = USUAL_RATES, **options: Any
) -> Method:
    tune = _peft("LoraConfig", r=rank, lora_alpha=alpha or 2 * rank, **options)
    return Method(label, rates, tune, ADDING_RATES)


METHODS: dict[str, Method] = {  # the paper's
    "road_1": Method("RoAd1", ROAD_RATES, _road("road_1"), TURNING_RATES),
    "road_1_fc1": Method("RoAd1(fc1)", ROAD_RATES, _road("road_1", layers=MLP_FIRST), SCALING_RATES),
    "road_2": Method("RoAd2", ROAD_RATES, _road("road_2"), TURNING_RATES),
    "road_4": Method("RoAd4", ROAD_RATES, _road("road_4"), TURNING_RATES),
    "full": Method("full fine-tuning", (3e-5, 1e-4, 2e-4, 5e-4), _only(lambda name: True), (2e-5, 5e-5, 1e-4, 2e-4)),
    "lora": _lora("LoRA r=8"),
    "dora": _lora("DoRA r=8", use_dora=True),
    "ia3": Method("(IA)3", ROAD_RATES, _ia3, SCALING_RATES),
    "oft_2": Method("OFT block 2", ROAD_RATES, _peft("OFTConfig", oft_block_size=2, r=0), TURNING_RATES),
    "oft_16": Method("OFT block 16", USUAL_RATES, _peft("OFTConfig", oft_block_size=16, r=0)),
    # two factors with PEFT's CUDA kernel; without it PEFT takes one
    "boft": Method("BOFT block 2", USUAL_RATES, _peft("BOFTConfig", boft_block_size=2, boft_n_butterfly_factor=2)),
    "bitfit": Method("BitFit", USUAL_RATES, _only(lambda name: name.endswith("bias")), (1e-3, 2e-3, 4e-3, 1e-2)),
    "prefix": Method("prefix tuning, 20", (1e-3, 3e-3, 1e-2, 3e-2), _prefix),
    "head": Method("head alone", (1e-3, 3e-3, 1e-2, 3e-2), _only(lambda name: False)),
}
PAPER_SIZED: dict[
    str, Method
] = {  # LoRAs as large as the paper's: of encoders (table 2), decoders (3 to 5), a LLaVA (6)
    "lora_qv": _lora("LoRA r=8, query and value", layers=LayerChoice.ending(QUERY_AND_VALUE)),
    "lora_32": _lora("LoRA r=32", rank=32, layers=LayerChoice.ending(LLM_ADAPTERS), rates=LLM_RATES),
    "dora_32": _lora("DoRA r=32", rank=32, layers=LayerChoice.ending(LLM_ADAPTERS), rates=LLM_RATES, use_dora=True),
    "lora_128": _lora("LoRA r=128", rank=128),
}
ALTERNATIVES: dict[str, Method] = {  # RoAd and LoRA with choices that METHODS make otherwise
    "road_1_other_pairs": Method("RoAd1, other pairs", ROAD_RATES, _road("road_1", other_pairs=True), TURNING_RATES),
    "road_2_attention": Method("RoAd2(attention)", ROAD_RATES, _road("road_2", layers=ATTENTION), TURNING_RATES),
    "lora_alpha_32": _lora("LoRA r=8, α=32", alpha=4 * RANK),
    "lora_dropout": _lora("LoRA r=8, dropout 0.1", lora_dropout=0.1),
}
ALL_METHODS = METHODS | PAPER_SIZED | ALTERNATIVES
FAMILIES = {  # as many members of each; RoAd's train at most a fifteenth of LoRA's parameters
    "RoAd": ("road_1", "road_1_other_pairs", "road_2_attention"),
    "LoRA": ("lora", "lora_alpha_32", "lora_dropout"),
}
