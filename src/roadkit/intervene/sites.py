"""Sites: the modules whose output is a hidden state, block by block, and how that state is read and replaced.

site(model, 15)                       # 'model.layers.15', the block's output
site(model, 15, "attention")          # 'model.layers.15.self_attn'; "mlp" likewise
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError, nearest

_PARTS = {"attention": ("self_attn", "attn", "attention", "self_attention"), "mlp": ("mlp", "feed_forward", "ffn")}


def blocks(model: nn.Module) -> dict[int, str]:
    """Number → name of every transformer block: the members of the longest list of like modules.

    A model that says which part is its decoder, beside a vision tower or an encoder, is searched in that part only. Raises
    `ModelError` if there is no such list.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None  # type: ignore[operator]
    inside = next((name + "." for name, module in model.named_modules() if name and module is decoder), "")
    lists = {
        name: module
        for name, module in model.named_modules()
        if name.startswith(inside) and isinstance(module, nn.ModuleList) and len({type(child) for child in module}) == 1
    }
    if not lists:
        raise ModelError(f"{type(model).__name__} has no list of blocks to intervene on")
    name = max(lists, key=lambda key: (len(lists[key]), -key.count(".")))
    return {number: f"{name}.{number}" for number in range(len(lists[name]))}


def site(model: nn.Module, layer: int, component: str = "block") -> str:
    """The name of a block's output, or of its attention's or MLP's. Raises `ModelError` for what is not there."""
    named = blocks(model)
    if layer not in named:
        raise ModelError(f"layer {layer} does not exist, the model has blocks 0 to {len(named) - 1}")
    if component == "block":
        return named[layer]
    if component not in _PARTS:
        raise ModelError(f"component {component!r} is none of block, attention, mlp{nearest(component, _PARTS)}")
    children = dict(model.get_submodule(named[layer]).named_children())
    found = next((name for name in _PARTS[component] if name in children), None)
    if found is None:
        raise ModelError(f"block {layer} has no {component}; its parts are {', '.join(children)}")
    return f"{named[layer]}.{found}"


def hidden_size(model: nn.Module) -> int:
    """Width of the hidden states."""
    config: Any = model.config
    return int(config.get_text_config().hidden_size)


def check_sites(model: nn.Module, widths: Iterable[tuple[str, int]]) -> None:
    """Check (site, width) against the model. Raises one `ModelError` that lists all that are missing or have another width."""
    modules, width, problems = dict(model.named_modules()), hidden_size(model), []
    for name, own in widths:
        if name not in modules:
            problems.append(f"the model has no module {name!r}{nearest(name, modules)}")
        elif own != width:
            problems.append(f"{name}: the intervention is {own} wide, the hidden states {width}")
    if problems:
        raise ModelError("the intervention does not fit the model: " + "; ".join(problems))


def hidden_of(output: Any) -> Tensor:
    """The hidden state [batch, tokens, d] in a module's output: the output itself, or the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """The output with another hidden state in it."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
