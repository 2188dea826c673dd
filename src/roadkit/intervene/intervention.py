"""`Intervention`: RoAd on hidden states, at chosen sites and token positions, in named subspaces.

    tasks = Intervention(rotation, Positions.parse("last:1"), {"german": upper, "instruct": lower})
    tasks.select("german")             # Φ(h) = h + Pᵀ(P R h − P h) with P the subspace's pairs, h elsewhere
    tasks.save("tasks"); Intervention.load("tasks")

The rotation is an `Adapter` whose layers are sites (block, attention or MLP outputs), so powers, products and inverses
are the adapter's. Restricting R to whole pairs is exact: it replaces the other blocks by the identity, so subspaces that
share no pair commute, and applying several in turn is one rotation.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..adapter import Adapter
from ..errors import AdapterError, AlgebraError, nearest
from .positions import Positions
from .subspace import Subspace


@dataclass(frozen=True, eq=False)
class Intervention:
    """A value: `Φ(h) = h + Pᵀ(P R h − P h)` at its sites and positions (RoAd, arXiv 2409.00119, §3.2).

    rotation    R: site → (a, b), as an adapter's layers
    positions   the tokens whose hidden states rotate; the others stay
    subspaces   name → pairs, for `select`; every site must have their width and group size
    source      site → [k, d] hidden states of another run, or [1, d] for all positions: R then acts on them,
                Φ(h) = h + Pᵀ(P R s − P h), the interchange of the paper's equation 1
    chosen      P, the pairs that act; None: all. R is the identity on the others, and a source leaves them alone

    Raises `AlgebraError` for subspaces of another width or group size.
    """

    rotation: Adapter
    positions: Positions
    subspaces: Mapping[str, Subspace] = field(default_factory=dict)
    source: Mapping[str, Tensor] | None = None
    chosen: Subspace | None = None

    def __post_init__(self) -> None:
        if self.chosen is not None:
            object.__setattr__(self, "rotation", restrict(self.rotation, self.chosen))
        for name, (width, group_size) in self.rotation.layout.layers.items():
            for label, subspace in self.subspaces.items():
                if (subspace.width, subspace.group_size) != (width, group_size):
                    raise AlgebraError(
                        f"subspace {label!r} has width {subspace.width} and group_size {subspace.group_size}, "
                        f"{name} has {width} and {group_size}"
                    )

    @classmethod
    def identity(
        cls, sites: tuple[str, ...], subspace: Subspace, positions: Positions | str = "all", **options
    ) -> Intervention:
        """R = I on the pairs of `subspace` at each site: for interchange, and as the start of training."""
        angles = torch.zeros(subspace.width // 2)
        parameters = {site: (angles, torch.ones_like(angles)) for site in sites}
        rotation = Adapter.from_parameters(parameters, variant="road_1", group_size=subspace.group_size)
        where = Positions.parse(positions) if isinstance(positions, str) else positions
        return cls(rotation, where, chosen=subspace, **options)

    @property
    def sites(self) -> tuple[str, ...]:
        """The modules at whose outputs it acts."""
        return tuple(self.rotation.layout.layers)

    @property
    def parts(self) -> Mapping[str, Intervention]:
        """Each subspace by itself, restricted when it is asked for."""
        return _Parts(self)

    @property
    def content_hash(self) -> str:
        """SHA-256 of the rotation, the pairs and the positions: what it does to a request."""
        pairs = None if self.chosen is None else sorted(self.chosen.pairs)
        return hashlib.sha256(f"{self.rotation.content_hash} {self.positions} {pairs}".encode()).hexdigest()

    def select(self, *names: str) -> Intervention:
        """Only the union of these subspaces acts; the rotation of all other pairs becomes the identity.

        Raises `AdapterError` for a name that no subspace has.
        """
        for name in names:
            if name not in self.subspaces:
                known = ", ".join(self.subspaces) or "none"
                raise AdapterError(f"no subspace {name!r}{nearest(name, self.subspaces)}; there are: {known}")
        if not names:
            raise AdapterError("select needs at least one subspace")
        union = self.subspaces[names[0]]
        for name in names[1:]:
            union = union | self.subspaces[name]
        return self.within(union)

    def within(self, subspace: Subspace) -> Intervention:
        """Only these pairs act."""
        return dataclasses.replace(self, chosen=subspace if self.chosen is None else self.chosen & subspace)

    def at(self, positions: Positions | str) -> Intervention:
        """The same at other positions."""
        where = Positions.parse(positions) if isinstance(positions, str) else positions
        return dataclasses.replace(self, positions=where)

    def interchange(self, source: Mapping[str, Tensor]) -> Intervention:
        """Take the chosen pairs from another run's hidden states, as `capture` returns them.

        Raises `AdapterError` for a site without hidden states, or with others than [k, width].
        """
        for name in self.sites:
            width = self.rotation.layout.layers[name][0]
            if name not in source:
                raise AdapterError(f"interchange: no hidden states for site {name!r}; there are {', '.join(source)}")
            if source[name].dim() != 2 or source[name].shape[1] != width:
                raise AdapterError(
                    f"interchange: {name} wants hidden states [k, {width}], got {list(source[name].shape)}"
                )
        return dataclasses.replace(self, source=dict(source))

    def __pow__(self, exponent: float) -> Intervention:
        """The same at another strength, as of an adapter."""
        return dataclasses.replace(self, rotation=self.rotation**exponent)

    def then(self, other: Intervention) -> Intervention:
        """This one, then `other`, as one rotation.

        Raises `AdapterError` if they act at different positions, or one of them interchanges.
        """
        if self.positions != other.positions:
            raise AdapterError(
                f"interventions at {self.positions} and at {other.positions} do not compose; use .at() to agree"
            )
        if self.source is not None or other.source is not None:
            raise AdapterError("interventions that interchange do not compose; apply them one inside the other")
        chosen = None if self.chosen is None or other.chosen is None else self.chosen | other.chosen
        rotation = self.rotation.then(other.rotation)
        return Intervention(rotation, self.positions, {**self.subspaces, **other.subspaces}, chosen=chosen)

    def save(self, path: str | os.PathLike) -> None:
        """Write intervention.json and intervention.safetensors, atomically; see `roadkit.intervene.files`."""
        from . import files

        files.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Intervention:
        """Read and validate what `save` wrote. Raises `AdapterError`."""
        from . import files

        return files.load(path)

    def __repr__(self) -> str:
        where = ", ".join(self.sites)
        return f"Intervention({where} at {self.positions}, subspaces: {', '.join(self.subspaces) or 'none'})"


class _Parts(Mapping[str, Intervention]):
    def __init__(self, whole: Intervention):
        self._whole = whole

    def __getitem__(self, name: str) -> Intervention:
        if name not in self._whole.subspaces:
            raise KeyError(name)
        return self._whole.select(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole.subspaces)

    def __len__(self) -> int:
        return len(self._whole.subspaces)

    def __contains__(self, name: object) -> bool:
        return name in self._whole.subspaces


def restrict(rotation: Adapter, subspace: Subspace) -> Adapter:
    """The adapter with the identity in every pair outside `subspace`, in all its layers."""
    mask = subspace.mask
    a, b = rotation.a.clone(), rotation.b.clone()
    for name, (width, group_size) in rotation.layout.layers.items():
        if (width, group_size) != (subspace.width, subspace.group_size):
            raise AlgebraError(
                f"{name} has width {width} and group_size {group_size}, the subspace {subspace.width} and "
                f"{subspace.group_size}"
            )
        span = rotation.layout.spans[name]
        a[span] = torch.where(mask, a[span], 1.0)
        b[span] = torch.where(mask, b[span], 0.0)
    return Adapter(rotation.layout, a, b, rotation.heads, rotation.base)
