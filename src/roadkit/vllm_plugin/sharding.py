"""Which rows of which vLLM layer an adapter's layer is: merged projections, shards, and what cannot be rotated.

    found = survey(model, group_sizes=(64,))
    found.layers["model.layers.0.self_attn.qkv_proj"].parts[1]    # k_proj: this rank's rows of the adapter's vector

vLLM merges q, k and v (and gate and up) into one layer and cuts each over the ranks; adapters use the names that
Hugging Face has. A pair must not be cut: a group size fits a layer where it divides every part's local rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..adapter import Adapter
from ..errors import AdapterError, nearest

# Models whose checkpoints hold q, k, v (or gate, up) as one layer in the order of vLLM's parts. Others interleave them
# by head (Falcon, InternLM2): vLLM's loader permutes the rows, and a pair would be torn apart.
FUSED_IN_ORDER = ("Phi3ForCausalLM",)


@dataclass(frozen=True)
class Part:
    """Rows [start, start + width) of the vectors of the adapter layer `name`, which are `full_width` long."""

    name: str
    full_width: int
    start: int
    width: int

    def fits(self, group_size: int) -> bool:
        return self.start % group_size == 0 and self.width % group_size == 0


@dataclass(frozen=True)
class Layer:
    """A vLLM linear layer that rotates: its parts in the order of its outputs, the group sizes that cut no pair."""

    module: Any
    parts: tuple[Part, ...]
    group_sizes: tuple[int, ...]

    @property
    def width(self) -> int:
        return sum(part.width for part in self.parts)


@dataclass
class Survey:
    """A model's layers by vLLM's name; `parts` and `reasons` (why not) by the adapter's; `absent` are other ranks'."""

    layers: dict[str, Layer] = field(default_factory=dict)
    parts: dict[str, list[tuple[str, int]]] = field(default_factory=dict)  # → vLLM's layer, place among its parts
    reasons: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    group_sizes: tuple[int, ...] = ()

    def check(self, adapter: Adapter, names: dict[str, str]) -> None:
        """Refuse an adapter that this engine cannot serve in full. `names`: the adapter's layer → this model's.

        Raises one `AdapterError` that lists every layer that does not fit, with both values and the mend.
        """
        problems = [
            f"it brings the whole module {name} (modules_to_save), only rotations are served" for name in adapter.heads
        ]
        strange = [size for size in adapter.group_sizes if size not in self.group_sizes]
        if strange:
            told = sorted({*self.group_sizes, *strange})
            problems.append(
                f"its group_size is {strange[0]}, the engine was told of {list(self.group_sizes)}; start vLLM with "
                f'--additional-config \'{{"roadkit": {{"group_sizes": {told}}}}}\''
            )
        for name, (width, group_size) in adapter.layout.layers.items():
            own = names[name]
            if own in self.parts:
                problems += self._misfits(own, width, group_size, adapter)
            elif not _under(own, self.absent):
                problems.append(self._unknown(own))
        if problems:
            more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
            raise AdapterError("the adapter does not fit this engine: " + "; ".join(problems[:5]) + more)

    def _misfits(self, name: str, width: int, group_size: int, adapter: Adapter) -> Iterable[str]:
        for owner, i in self.parts[name]:
            part = self.layers[owner].parts[i]
            if part.full_width != width:
                trained = f"; was it trained on {adapter.base.name!r}?" if adapter.base.name else ""
                yield f"{name}: adapter is {width} wide, layer {part.full_width}{trained}"
                return
            parts = self.layers[owner].parts  # one rotation for all of them
            cut = next((part for part in [part, *parts] if not part.fits(group_size)), None)
            if cut is not None:
                fitting = math.gcd(group_size, *(bound for part in parts for bound in (part.start, part.width)))
                mend = f"group_size={fitting} would fit" if fitting % 2 == 0 else "no group size fits, use fewer ranks"
                where = "" if cut is part else f" of {cut.name}, which vLLM keeps in the same layer"
                yield (
                    f"{name}: group_size {group_size} cuts a pair{where}, this rank holds rows {cut.start} to "
                    f"{cut.start + cut.width} of {cut.full_width}; {mend}"
                )
                return

    def _unknown(self, name: str) -> str:
        for known, reason in self.reasons.items():
            if _under(name, [known]):
                return f"{name} {reason}"
        return f"the model has no linear layer {name!r}{nearest(name, self.parts)}"


def survey(model: nn.Module, *, group_sizes: tuple[int, ...]) -> Survey:
    """Look at every module of a loaded vLLM model once. Only the five plain linear classes of vLLM rotate.

    Their forward methods were read (0.32: `linear.py`): each calls `quant_method.apply` once on its whole output. A
    subclass may do anything else (fused kernels, its own sharding), so it is refused when an adapter asks for it.
    """
    from vllm.model_executor.layers.fused_moe import MoERunner
    from vllm.model_executor.layers.linear import (
        ColumnParallelLinear,
        LinearBase,
        MergedColumnParallelLinear,
        QKVParallelLinear,
        ReplicatedLinear,
        RowParallelLinear,
    )
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
    from vllm.model_executor.models.utils import PPMissingLayer
    from vllm.model_executor.utils import get_packed_modules_mapping

    plain = (ReplicatedLinear, ColumnParallelLinear, MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear)
    modules = dict(model.named_modules(remove_duplicate=False))
    packed = get_packed_modules_mapping(model)
    in_order = type(model).__name__ in FUSED_IN_ORDER
    inside = _language_model(model)
    found = Survey(group_sizes=group_sizes)
    for name, module in modules.items():
        if isinstance(module, MoERunner):  # with the router and the shared experts beside it, which it may call itself
            found.reasons[name.rpartition(".")[0]] = "is part of a mixture-of-experts block, which does not rotate"
    experts = list(found.reasons)
    owners: dict[int, str] = {}
    for name, module in modules.items():
        parent, _, leaf = name.rpartition(".")
        children = [f"{parent}.{child}" if parent else child for child in packed.get(leaf, [leaf])]
        reason = ""
        if isinstance(module, PPMissingLayer):
            found.absent.append(name)
        elif isinstance(module, VocabParallelEmbedding):
            found.reasons[name] = "is an embedding or an output head, only linear layers inside the model rotate"
        elif isinstance(module, LinearBase) and not _under(name, experts):
            if inside is not None and not _under(name, inside):
                reason = "is outside the language model, whose tokens are the only ones with an adapter each"
            elif type(module) not in plain:
                reason = f"is a {type(module).__name__}, whose forward pass does not go through the plain linear layer"
            elif leaf == "kv_b_proj" and _absorbed(model):
                reason = "is absorbed into the attention kernel (MLA), which reads its weights only"
            else:
                parts = _parts(module, children, in_order=in_order)
                if parts is None:
                    reason = "is fused in the checkpoint, and vLLM's loader may permute its rows"
                else:
                    fitting = tuple(size for size in group_sizes if all(part.fits(size) for part in parts))
                    owner = owners.setdefault(id(module), name)  # one module under two names rotates once
                    found.layers.setdefault(owner, Layer(module, parts, fitting))
                    for i, part in enumerate(parts):
                        found.parts.setdefault(part.name, []).append((owner, i))
        if reason:
            found.reasons |= dict.fromkeys(children, reason)
    return found


def _parts(module: Any, children: list[str], *, in_order: bool) -> tuple[Part, ...] | None:
    """The pieces of one vLLM layer on this rank, None where the order of its rows is not known."""
    rank, size = module.tp_rank, module.tp_size
    kind = type(module).__name__
    if kind == "QKVParallelLinear":
        heads, key_heads = module.total_num_heads, module.total_num_kv_heads
        widths = [heads * module.head_size, key_heads * module.head_size, key_heads * module.v_head_size]
        local = [module.num_heads * module.head_size, module.num_kv_heads * module.head_size]
        local.append(module.num_kv_heads * module.v_head_size)
        ranks = [rank, *[rank // module.num_kv_head_replicas] * 2]  # several ranks share one key/value head
    elif kind == "MergedColumnParallelLinear":
        widths = list(module.output_sizes)
        local, ranks = [width // size for width in widths], [rank] * len(widths)
    elif kind == "ColumnParallelLinear":
        widths, local, ranks = [module.output_size], [module.output_size_per_partition], [rank]
    else:  # replicated, or cut along its inputs: each rank holds every output row (a partial sum of it)
        widths, local, ranks = [module.output_size], [module.output_size], [0]
    pieces = list(zip(widths, local, ranks, strict=True))
    if len(children) == len(pieces):
        return tuple(
            Part(name, width, rank * own, own) for name, (width, own, rank) in zip(children, pieces, strict=True)
        )
    if len(children) != 1 or not in_order:
        return None
    offsets = [sum(widths[:i]) for i in range(len(widths))]
    return tuple(
        Part(children[0], sum(widths), offset + rank * own, own)
        for offset, (_, own, rank) in zip(offsets, pieces, strict=True)
    )


def _under(name: str, ancestors: Iterable[str]) -> bool:
    return any(name == ancestor or name.startswith(ancestor + ".") for ancestor in ancestors)


def _language_model(model: Any) -> list[str] | None:
    """Prefixes of a multimodal model's language model; None for a text model, where everything counts."""
    from vllm.model_executor.models import supports_multimodal

    if not supports_multimodal(model) or not hasattr(model, "get_mm_mapping"):
        return None
    return [prefix.rstrip(".") for prefix in model.get_mm_mapping().language_model]


def _absorbed(model: Any) -> bool:
    return any(hasattr(module, "kv_b_proj") and type(module).__name__.startswith("MLA") for module in model.modules())
