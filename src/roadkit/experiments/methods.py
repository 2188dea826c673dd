"""The methods that the paper compares: how each makes a base model trainable, and the learning rates it is given.

    tuned = METHODS["lora"].tune(model, recipe)       # in place, like every PEFT method
    num_trainable(tuned, heads)                       # heads not counted, as in the paper

RoAd goes through `roadkit.train`, the others through PEFT. Every method gets the same number of learning rates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..errors import RecipeError, nearest
from ..train.recipe import Recipe
from ..train.tuned import head_names, inside, target_layers, tune

FIRST_OF_MLP = ("intermediate.dense", "fc1", "up_proj", "gate_proj", "c_fc")  # the paper's "fc1", by model family
SECOND_OF_MLP = ("down_proj", "fc2", "c_proj", "output.dense")
RANK = 8

Tune = Callable[[PreTrainedModel, Recipe], nn.Module]


@dataclass(frozen=True)
class Method:
    """label    as in tables
    rates       learning rates tried, in the paper's order of magnitude for RoAd (§C.1), a decade around the usual else
    tune        makes a model trainable, in place → the model to train
    small       rates for the small scale's models and few steps; empty: the same
    """

    label: str
    rates: tuple[float, ...]
    tune: Tune
    small: tuple[float, ...] = ()

    def rates_at(self, scale: str, count: int) -> tuple[float, ...]:
        """`count` of the scale's four rates a < b < c < d: (b), (b, c), (b, c, d), (b, c, d, a)."""
        a, b, c, d = self.small if self.small and scale == "small" else self.rates
        return (b, c, d, a)[:count]


def find(name: str) -> Method:
    """Raises `RecipeError` with the nearest name."""
    if name not in METHODS:
        raise RecipeError(f"no method {name!r}{nearest(name, METHODS)}; there are {', '.join(METHODS)}")
    return METHODS[name]


def num_trainable(model: nn.Module, heads: Sequence[str] = ()) -> int:
    """Trainable parameters outside the heads."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not inside(name, heads)
    )


def _road(variant: str, *, first_of_mlp: bool = False) -> Tune:
    def apply(model: PreTrainedModel, recipe: Recipe) -> nn.Module:
        changes: dict[str, Any] = {"variant": variant}
        if first_of_mlp:
            layers = [name for name in target_layers(model, recipe) if name.endswith(FIRST_OF_MLP)]
            if not layers:
                raise RecipeError(f"{type(model).__name__} has no layer called {', '.join(FIRST_OF_MLP)}")
            changes["target_modules"] = layers
        return tune(model, Recipe(**recipe.model_dump() | changes))

    return apply


def _peft(make: Callable[..., Any], **options: Any) -> Tune:
    """A PEFT method on the layers that RoAd rotates."""

    def apply(model: PreTrainedModel, recipe: Recipe) -> nn.Module:
        from peft import get_peft_model

        layers, heads = list(target_layers(model, recipe)), head_names(model, recipe)
        return get_peft_model(model, make(target_modules=layers, modules_to_save=heads or None, **options))

    return apply


def _config(name: str) -> Callable[..., Any]:
    def make(**options: Any) -> Any:
        import peft

        return getattr(peft, name)(**options)

    return make


def _ia3(model: PreTrainedModel, recipe: Recipe) -> nn.Module:
    """(IA)³ scales keys, values and the inputs of the second MLP layer; in decoders every layer, as in §C.2."""
    from peft import IA3Config, get_peft_model

    layers, heads = list(target_layers(model, recipe)), head_names(model, recipe)
    second = [name for name in layers if name.endswith(SECOND_OF_MLP) and "attention" not in name]
    if recipe.task != "causal":
        layers = [name for name in layers if name.endswith(("key", "value", "k_proj", "v_proj"))] + second
    config = IA3Config(target_modules=layers, feedforward_modules=second, modules_to_save=heads or None)
    return get_peft_model(model, config)


def _prefix(model: PreTrainedModel, recipe: Recipe) -> nn.Module:
    from peft import PrefixTuningConfig, TaskType, get_peft_model

    kind = TaskType.CAUSAL_LM if recipe.task == "causal" else TaskType.SEQ_CLS
    heads = head_names(model, recipe)
    tuned = get_peft_model(model, PrefixTuningConfig(num_virtual_tokens=20, task_type=kind))
    for name, parameter in tuned.named_parameters():  # PEFT trains the classifier alone
        if inside(name, heads) and ".original_module." not in name:
            parameter.requires_grad_(True)
    return tuned


def _only(keep: Callable[[str], bool]) -> Tune:
    """Train the parameters whose name is kept, and the heads."""

    def apply(model: PreTrainedModel, recipe: Recipe) -> nn.Module:
        heads = head_names(model, recipe)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(keep(name) or inside(name, heads))
        return model

    return apply


ROAD_RATES = (1e-3, 3e-3, 5e-3, 7e-3)  # the paper's
# Small scale: around the best of a first search.
TURNING_RATES, SCALING_RATES, ADDING_RATES = (
    (2e-3, 5e-3, 1e-2, 2e-2),
    (5e-3, 1e-2, 2e-2, 5e-2),
    (2e-4, 5e-4, 1e-3, 2e-3),
)
METHODS: dict[str, Method] = {
    "road_1": Method("RoAd1", ROAD_RATES, _road("road_1"), TURNING_RATES),
    "road_1_fc1": Method("RoAd1(fc1)", ROAD_RATES, _road("road_1", first_of_mlp=True), SCALING_RATES),
    "road_2": Method("RoAd2", ROAD_RATES, _road("road_2"), TURNING_RATES),
    "road_4": Method("RoAd4", ROAD_RATES, _road("road_4"), TURNING_RATES),
    "full": Method("full fine-tuning", (3e-5, 1e-4, 2e-4, 5e-4), _only(lambda name: True), (2e-5, 5e-5, 1e-4, 2e-4)),
    "lora": Method(
        "LoRA r=8", (5e-4, 1e-3, 2e-3, 4e-3), _peft(_config("LoraConfig"), r=RANK, lora_alpha=2 * RANK), ADDING_RATES
    ),
    "dora": Method(
        "DoRA r=8",
        (5e-4, 1e-3, 2e-3, 4e-3),
        _peft(_config("LoraConfig"), r=RANK, lora_alpha=2 * RANK, use_dora=True),
        ADDING_RATES,
    ),
    "ia3": Method("(IA)3", ROAD_RATES, _ia3, SCALING_RATES),
    "oft_2": Method("OFT block 2", ROAD_RATES, _peft(_config("OFTConfig"), oft_block_size=2, r=0), TURNING_RATES),
    "oft_16": Method("OFT block 16", (5e-4, 1e-3, 2e-3, 4e-3), _peft(_config("OFTConfig"), oft_block_size=16, r=0)),
    "boft": Method(  # of two factors where PEFT has its CUDA kernel, of one elsewhere
        "BOFT block 2",
        (5e-4, 1e-3, 2e-3, 4e-3),
        _peft(_config("BOFTConfig"), boft_block_size=2, boft_n_butterfly_factor=2),
    ),
    "bitfit": Method(
        "BitFit", (5e-4, 1e-3, 2e-3, 4e-3), _only(lambda name: name.endswith("bias")), (1e-3, 2e-3, 4e-3, 1e-2)
    ),
    "prefix": Method("prefix tuning, 20", (1e-3, 3e-3, 1e-2, 3e-2), _prefix),
    "head": Method("head alone", (1e-3, 3e-3, 1e-2, 3e-2), _only(lambda name: False)),
}
