"""Which rows of which vLLM layer an adapter's layer is: merged projections, shards, and what cannot be rotated.

    found = survey(model, group_sizes=(64,))
    found.layers["model.layers.0.self_attn.qkv_proj"].shards[1]    # k_proj: this rank's rows of the adapter's vectors

vLLM merges q, k and v (and gate and up) into one layer and cuts each over the ranks. Adapters use the names that Hugging
Face has. A pair must not be cut, so a group size fits a layer if it divides the local rows of each of its shards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..adapter import Adapter
from ..errors import AdapterError, nearest

# Models whose checkpoints hold q, k, v (or gate, up) as one layer, in the order of vLLM's shards. Others interleave them
# by head (Falcon, InternLM2): vLLM's loader permutes the rows, and a pair would be torn apart.
FUSED_IN_ORDER = ("Phi3ForCausalLM",)


@dataclass(frozen=True)
class Shard:
    """This rank's rows of one adapter layer: `width` rows from `start` on, of `full_width` in all."""

    name: str
    full_width: int
    start: int
    width: int

    def fits(self, group_size: int) -> bool:
        """Are all pairs of this group size whole?"""
        return self.start % group_size == 0 and self.width % group_size == 0


@dataclass(frozen=True)
class ShardedLayer:
    """A vLLM linear layer that rotates.

    module       vLLM's layer
    shards       in the order of its outputs: q, k and v for a layer that merges them
    group_sizes  those of the engine that cut no pair in it
    """

    module: Any
    shards: tuple[Shard, ...]
    group_sizes: tuple[int, ...]

    @property
    def width(self) -> int:
        """Outputs of the layer on this rank."""
        return sum(shard.width for shard in self.shards)


@dataclass
class ModelSurvey:
    """What of a loaded vLLM model rotates, on this rank.

    group_sizes  those of the engine
    layers       the layers that rotate, by vLLM's name
    shards       an adapter's layer → where it is: vLLM's layers, each with the place among its shards
    reasons      an adapter's layer → why it does not rotate
    absent       names of what other ranks of the pipeline hold
    """

    group_sizes: tuple[int, ...]
    layers: dict[str, ShardedLayer] = field(default_factory=dict)
    shards: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)

    def add(self, name: str, module: Any, shards: tuple[Shard, ...]) -> None:
        """A layer that rotates. One module under two names rotates once, under the first."""
        owner = next((known for known, layer in self.layers.items() if layer.module is module), name)
        fitting = tuple(size for size in self.group_sizes if all(shard.fits(size) for shard in shards))
        self.layers.setdefault(owner, ShardedLayer(module, shards, fitting))
        for i, shard in enumerate(shards):
            self.shards.setdefault(shard.name, []).append((owner, i))

    def refuse(self, names: Iterable[str], reason: str) -> None:
        """Layers of adapters that do not rotate, and why."""
        self.reasons |= dict.fromkeys(names, reason)

    def check(self, adapter: Adapter, names: dict[str, str]) -> None:
        """Refuse an adapter that this engine cannot serve in full.

        names  the adapter's name of a layer → this model's

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
            if own in self.shards:
                problems += self._misfits(own, width, group_size, adapter)
            elif not _under(own, self.absent):
                problems.append(self._unknown(own))
        if problems:
            more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
            raise AdapterError("the adapter does not fit this engine: " + "; ".join(problems[:5]) + more)

    def _misfits(self, name: str, width: int, group_size: int, adapter: Adapter) -> Iterator[str]:
        """What is wrong with one layer of an adapter, if anything."""
        for owner, i in self.shards[name]:
            shards = self.layers[owner].shards
            shard = shards[i]
            if shard.full_width != width:
                trained = f"; was it trained on {adapter.base.name!r}?" if adapter.base.name else ""
                yield f"{name}: adapter is {width} wide, layer {shard.full_width}{trained}"
                return
            # one rotation turns all shards of a layer
            cut = next((other for other in [shard, *shards] if not other.fits(group_size)), None)
            if cut is not None:
                fitting = math.gcd(group_size, *(bound for other in shards for bound in (other.start, other.width)))
                mend = f"group_size={fitting} would fit" if fitting % 2 == 0 else "no group size fits, use fewer ranks"
                whose = "" if cut is shard else f" of {cut.name}, which vLLM keeps in the same layer"
                yield (
                    f"{name}: group_size {group_size} cuts a pair{whose}, this rank holds rows {cut.start} to "
                    f"{cut.start + cut.width} of {cut.full_width}; {mend}"
                )
                return

    def _unknown(self, name: str) -> str:
        for known, reason in self.reasons.items():
            if _under(name, [known]):
                return f"{name} {reason}"
        return f"the model has no linear layer {name!r}{nearest(name, self.shards)}"


def survey(model: nn.Module, *, group_sizes: tuple[int, ...]) -> ModelSurvey:
    """Look at every module of a loaded vLLM model once. Only the five plain linear classes of vLLM rotate.

    Their forward methods were read (0.32, `linear.py`): each calls `quant_method.apply` once, on its whole output. A
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
    found = ModelSurvey(group_sizes)
    # A block's runner may call the router and the shared experts beside it itself.
    experts = [name.rpartition(".")[0] for name, module in modules.items() if isinstance(module, MoERunner)]
    found.refuse(experts, "is part of a mixture-of-experts block, which does not rotate")
    for name, module in modules.items():
        parent, _, leaf = name.rpartition(".")
        children = [f"{parent}.{child}" if parent else child for child in packed.get(leaf, [leaf])]
        if isinstance(module, PPMissingLayer):
            found.absent.append(name)
        elif isinstance(module, VocabParallelEmbedding):
            found.refuse([name], "is an embedding or an output head, only linear layers inside the model rotate")
        elif not isinstance(module, LinearBase) or _under(name, experts):
            continue
        elif inside is not None and not _under(name, inside):
            found.refuse(children, "is outside the language model, whose tokens are the only ones with an adapter each")
        elif type(module) not in plain:
            kind = type(module).__name__
            found.refuse(children, f"is a {kind}, whose forward pass does not go through the plain linear layer")
        elif leaf == "kv_b_proj" and _absorbed(model):
            found.refuse(children, "is absorbed into the attention kernel (MLA), which reads its weights only")
        elif (shards := _shards(module, children, in_order=in_order)) is None:
            found.refuse(children, "is fused in the checkpoint, and vLLM's loader may permute its rows")
        else:
            found.add(name, module, shards)
    return found


def _shards(module: Any, children: Sequence[str], *, in_order: bool) -> tuple[Shard, ...] | None:
    """The shards of one vLLM layer on this rank; None if the order of its rows is not known.

    children  the adapter's names of the layers that are merged into it; one, if the checkpoint fuses them
    in_order  does the checkpoint hold fused layers in the order of the shards?
    """
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
            Shard(name, width, rank * own, own) for name, (width, own, rank) in zip(children, pieces, strict=True)
        )
    if len(children) != 1 or not in_order:
        return None
    offsets = [sum(widths[:i]) for i in range(len(widths))]
    return tuple(
        Shard(children[0], sum(widths), offset + rank * own, own)
        for offset, (_, own, rank) in zip(offsets, pieces, strict=True)
    )


def _under(name: str, ancestors: Iterable[str]) -> bool:
    """Is this one of the ancestors, or inside one?"""
    return any(name == ancestor or name.startswith(ancestor + ".") for ancestor in ancestors)


def _language_model(model: Any) -> list[str] | None:
    """Names under which a multimodal model has its language model; None for a text model, all of which counts."""
    from vllm.model_executor.models import supports_multimodal

    get_mapping = getattr(model, "get_mm_mapping", None)
    if not supports_multimodal(model) or get_mapping is None:
        return None
    return [prefix.rstrip(".") for prefix in get_mapping().language_model]


def _absorbed(model: Any) -> bool:
    """Does an MLA attention layer of the model read the weights of `kv_b_proj` instead of calling it?"""
    return any(hasattr(module, "kv_b_proj") and type(module).__name__.startswith("MLA") for module in model.modules())
