"""`Adapter`: one fine-tuned model as a value, to be composed, inverted and scaled.

    both = formal.then(german)             # formal first, german on its result
    half = formal ** 0.5                   # half the strength
    base = formal.then(formal.inverse())   # the base model again

An adapter is named layers, each with its vectors a and b (see `roadkit.rotation`). All layers lie end to end in two flat
float32 vectors, ordered by group size and then by name. So an operation on a whole model is a handful of tensor
operations, and activating an adapter is one copy.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import matrices, rotation
from .errors import AdapterError, AlgebraError
from .layout import Layout


@dataclass(frozen=True)
class Base:
    """The model an adapter was made for.

    name         its hub id or folder; '' if unknown
    fingerprint  `roadkit.models.config_fingerprint` of its configuration; '' if unknown
    """

    name: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, eq=False)
class Adapter:
    """An immutable RoAd adapter (arXiv 2409.00119). `Adapter.load` reads one; the operations below compute with it.

    Every layer's output h becomes z = a ⊙ h + b ⊙ swap(h), with the layer's own a and b. Two adapters are equal if they do
    the same to the same layers, whatever variant or file they came from.

    layout      the layers: their names, widths and group sizes
    a           [layout.width] float32, of all layers end to end
    b           [layout.width] float32, of all layers end to end
    heads       whole modules that were trained beside the rotations (PEFT's `modules_to_save`): module → parameter →
                tensor
    base        the model it belongs to
    variant     'road_1', 'road_2' or 'road_4' as loaded; None for a computed adapter
    parameters  layer → (θ in radians, α) as loaded, kept bit for bit for saving; empty for a computed adapter
    """

    layout: Layout
    a: Tensor
    b: Tensor
    heads: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    base: Base = Base()
    variant: str | None = None
    parameters: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def from_parameters(
        cls,
        parameters: Mapping[str, tuple[Tensor, Tensor]],
        *,
        variant: str,
        group_size: int,
        heads: Mapping[str, Mapping[str, Tensor]] | None = None,
        base: Base | None = None,
    ) -> Adapter:
        """Lower θ and α of one variant and group size. The tensors are copied to the CPU.

        parameters  module name → (θ in radians, α), each 1-D and laid out as PEFT does
        variant     'road_1', 'road_2' or 'road_4'
        group_size  even; inside a group, output i pairs with output i + group_size/2

        Raises `AdapterError` or `AlgebraError` for sizes that fit no layer.
        """
        if not parameters:
            raise AdapterError("an adapter needs at least one layer")
        layers, kept = {}, {}
        for name, (theta, alpha) in parameters.items():
            if theta.dim() != 1 or theta.shape != alpha.shape:
                raise AdapterError(f"{name}: θ {list(theta.shape)} and α {list(alpha.shape)} must be equal and 1-D")
            layers[name] = rotation.layer_width(variant, len(theta), group_size, name), group_size
            kept[name] = theta.detach().cpu().clone(), alpha.detach().cpu().clone()
        layout = Layout(layers)
        flat_theta = torch.cat([kept[name][0].float() for name in layout.layers])
        flat_alpha = torch.cat([kept[name][1].float() for name in layout.layers])
        a, b = rotation.lower(variant, flat_theta, flat_alpha, group_size)
        heads = {module: {name: tensor.cpu() for name, tensor in own.items()} for module, own in (heads or {}).items()}
        return cls(layout, a, b, heads, base or Base(), variant, kept)

    def to_parameters(self) -> tuple[str, Mapping[str, tuple[Tensor, Tensor]]]:
        """The variant and every layer's (θ, α), as `from_parameters` takes them: the layers must have one group size.

        A loaded adapter gives what was loaded. A computed one gives the smallest variant that holds it, within 1e-6.
        Raises `AdapterError` for several group sizes.
        """
        if self.variant is not None:
            return self.variant, self.parameters
        if len(self.group_sizes) != 1:
            raise AdapterError(
                f"PEFT's format holds one group_size an adapter, this one has {list(self.group_sizes)}; "
                "split it by layer and save the parts"
            )
        (group_size,) = self.group_sizes
        variant, theta, alpha = rotation.raise_to_parameters(self.a, self.b, group_size)
        share = 2 if variant == "road_1" else 1  # outputs an entry
        parameters = {}
        for name, span in self.layout.spans.items():
            part = slice(span.start // share, span.stop // share)
            parameters[name] = theta[part], alpha[part]
        return variant, parameters

    @classmethod
    def load(cls, source: str | os.PathLike) -> Adapter:
        """Read an adapter in PEFT's format and validate it in full.

        source  a local folder, a hub id (`owner/name`), or an fsspec address such as s3://bucket/formal

        Raises one `AdapterError` that lists everything wrong with it.
        """
        from . import store

        return store.load(source)

    def save(self, path: str | os.PathLike) -> None:
        """Write a directory in PEFT's format in one step. See `roadkit.store.save`.

        Raises `AdapterError` if the layers have different group sizes, or the folder holds anything else.
        """
        from . import store

        store.save(self, path)

    def layer(self, name: str) -> tuple[Tensor, Tensor, int]:
        """(a [width], b [width], group size) of one layer; a and b are views of the flat vectors."""
        span = self.layout.spans[name]
        return self.a[span], self.b[span], self.layout.layers[name][1]

    # What `kinds.AnyAdapter` asks for: an adapter rotates linear layers, for every token, and has no parts.

    @property
    def rotation(self) -> Adapter:
        return self

    @property
    def positions(self) -> None:
        return None

    @property
    def parts(self) -> Mapping[str, Adapter]:
        return {}

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """The group sizes of its layers, ascending."""
        return tuple(self.layout.parts)

    @property
    def content_hash(self) -> str:
        """SHA-256 of what the adapter does, that is of its lowered layers and its heads."""
        return self._content_hash

    @functools.cached_property
    def _content_hash(self) -> str:
        digest = hashlib.sha256(repr(list(self.layout.layers.items())).encode())
        digest.update(self.a.numpy().tobytes())
        digest.update(self.b.numpy().tobytes())
        for module, tensors in sorted(self.heads.items()):
            for name, tensor in sorted(tensors.items()):
                digest.update(f"{module}.{name}{tensor.dtype}{list(tensor.shape)}".encode())
                digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Adapter) and self.content_hash == other.content_hash

    def __hash__(self) -> int:
        return hash(self.content_hash)

    def __repr__(self) -> str:
        sizes = ", ".join(map(str, self.group_sizes))
        kind = self.variant or "computed"
        return f"Adapter({kind}, {len(self.layout.layers)} layers, group_size={sizes}, {self.content_hash[:12]})"

    def then(self, other: Adapter) -> Adapter:
        """One adapter that does what this one and then `other` on its result do: every block is their product.

        A layer that only one of them has is taken as it is. Raises `AdapterError` if the base models differ, both have
        heads and these differ, or a layer has another width or group size.
        """
        layout = common_layout([self, other])
        first, second = (adapter.spread(layout) for adapter in (self, other))
        parts = [
            matrices.product((first[0][part], first[1][part]), (second[0][part], second[1][part]), group_size)
            for group_size, part in layout.parts.items()
        ]
        a, b = (torch.cat(vectors) for vectors in zip(*parts, strict=True))
        return Adapter(layout, a, b, common_heads([self, other]), common_base([self, other]))

    def __pow__(self, exponent: float) -> Adapter:
        """The adapter at strength w, `adapter ** w`: 0 is the base model, 1 the adapter, −1 its inverse. Heads are kept.

        road_1 gets w·θ and α^w, all other blocks the real matrix power (see `roadkit.matrices.power`). Raises `AlgebraError`
        naming layer and pair if a power does not exist.
        """
        if exponent == 1:
            return self
        return self._each(lambda a, b, group_size: matrices.power(a, b, exponent, group_size), f"power {exponent:g}")

    def inverse(self) -> Adapter:
        """The adapter that undoes this one. Raises `AlgebraError` naming layer and pair if a block is nearly singular."""
        return self**-1

    def _each(self, function: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]], operation: str) -> Adapter:
        """The adapter whose (a, b) `function` makes, once for each group size. Errors name the layer."""
        results = []
        for group_size, part in self.layout.parts.items():
            try:
                results.append(function(self.a[part], self.b[part], group_size))
            except AlgebraError as error:
                if error.pair is None:
                    raise
                name, pair = self.layout.locate(error.pair, group_size)
                raise AlgebraError(f"{operation}: layer {name}, pair {pair}: {error}", pair=pair) from None
        a, b = (torch.cat(vectors) for vectors in zip(*results, strict=True))
        return Adapter(self.layout, a, b, self.heads, self.base)

    def spread(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """(a, b) of this adapter in a larger layout, each [layout.width]: the identity in layers that it lacks."""
        if layout == self.layout:
            return self.a, self.b
        a, b = torch.ones(layout.width), torch.zeros(layout.width)
        for name, span in self.layout.spans.items():
            a[layout.spans[name]], b[layout.spans[name]] = self.a[span], self.b[span]
        return a, b


def common_layout(adapters: Sequence[Adapter]) -> Layout:
    """The layout of all their layers. Raises `AdapterError` naming both values if bases, widths or group sizes differ."""
    layout, base = adapters[0].layout, adapters[0].base
    for adapter in adapters[1:]:
        one, other = base, adapter.base
        if one.fingerprint and other.fingerprint and one.fingerprint != other.fingerprint:
            raise AdapterError(f"the adapters belong to different base models: {one.name!r} and {other.name!r}")
        base = one if one.fingerprint else other
        if layout == adapter.layout:
            continue
        problems = []
        for name, (width, group_size) in adapter.layout.layers.items():
            known_width, known_size = layout.layers.get(name, (width, group_size))
            if known_width != width:
                problems.append(f"{name}: {known_width} wide in one adapter, {width} in the other")
            elif known_size != group_size:
                problems.append(f"{name}: group_size {known_size} in one adapter, {group_size} in the other")
        if problems:
            more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
            raise AdapterError("these adapters do not compose: " + "; ".join(problems[:5]) + more)
        layout = Layout({**layout.layers, **adapter.layout.layers})
    return layout


def common_base(adapters: Sequence[Adapter]) -> Base:
    """The first base that has a name. `common_layout` refuses adapters of different bases."""
    return next((adapter.base for adapter in adapters if adapter.base.name), adapters[-1].base)


def common_heads(adapters: Sequence[Adapter]) -> Mapping[str, Mapping[str, Tensor]]:
    """The heads of those that have any. Raises `AdapterError` if they differ."""
    headed = [adapter.heads for adapter in adapters if adapter.heads]
    for heads in headed[1:]:
        if not _same_heads(headed[0], heads):
            raise AdapterError(
                f"adapters with different heads do not compose: {sorted(headed[0])} and {sorted(heads)} differ"
            )
    return headed[0] if headed else {}


def _same_heads(one: Mapping[str, Mapping[str, Tensor]], other: Mapping[str, Mapping[str, Tensor]]) -> bool:
    return one.keys() == other.keys() and all(
        one[module].keys() == other[module].keys()
        and all(torch.equal(tensor, other[module][name]) for name, tensor in tensors.items())
        for module, tensors in one.items()
    )
