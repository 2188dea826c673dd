"""The two kinds of adapter, rotations of linear layers and interventions on hidden states, as a bank or a server sees them.

    adapter = kinds.load("adapters/formal")      # an `Adapter`, or an `Intervention` if the folder holds one
    kinds.check_fit(model, adapter)
    adapter.rotation, adapter.positions, adapter.parts

Only this file tells the kinds apart.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from torch import nn

from . import modules, sources, store
from .adapter import Adapter
from .errors import AdapterError, ExpressionError
from .intervene import files as interventions
from .intervene.intervention import Intervention
from .intervene.positions import Positions
from .intervene.sites import check_sites


class AnyAdapter(Protocol):
    """An `Adapter` or an `Intervention`.

    rotation       what it rotates by: an adapter is its own, an intervention's layers are sites
    positions      the tokens whose hidden states it rotates; None if it rotates linear layers, for every token
    parts          what can be asked for by a name of its own: an intervention's subspaces
    content_hash   SHA-256 of what it does
    """

    @property
    def rotation(self) -> Adapter: ...

    @property
    def positions(self) -> Positions | None: ...

    @property
    def parts(self) -> Mapping[str, AnyAdapter]: ...

    @property
    def content_hash(self) -> str: ...


def files_in(folder: str | os.PathLike) -> tuple[str, str] | None:
    """The names of the two files in a local folder, if it holds an adapter or an intervention; None if it holds neither."""
    found = (names for names in (interventions.FILES, store.FILES) if os.path.isfile(Path(folder) / names[0]))
    return next(found, None)  # isfile() is False, too, if the folder may not be read


def read(source: str | os.PathLike) -> tuple[bytes, bytes]:
    """Both files of a folder, hub id or address. Raises `AdapterError`."""
    return sources.read(source, files_in(source) or store.FILES)


def parse(config: bytes, weights: bytes, *, origin: str) -> AnyAdapter:
    """Validate both files' bytes. Raises `AdapterError`."""
    parse_kind = interventions.parse if interventions.is_config(config) else store.parse
    return parse_kind(config, weights, origin=origin)


def load(source: str | os.PathLike) -> AnyAdapter:
    """Read and validate a folder, hub id or address. Raises `AdapterError`."""
    return parse(*read(source), origin=os.fspath(source))


def check_fit(model: nn.Module, adapter: AnyAdapter) -> None:
    """Refuse an adapter of which the model lacks a layer or site, or has one of another width.

    An intervention that interchanges fits no bank or server: its hidden states are those of one other run.

    Raises `AdapterError` or `ModelError`.
    """
    if isinstance(adapter, Intervention) and adapter.source is not None:
        raise AdapterError(
            "the intervention takes hidden states from another run; `intervened` does that, a bank cannot"
        )
    if adapter.positions is None:
        modules.match(model, adapter.rotation)
    else:
        layers = adapter.rotation.layout.layers
        check_sites(model, [(site, width) for site, (width, _) in layers.items()])


def common_positions(adapters: Iterable[AnyAdapter]) -> Positions | None:
    """Where the interventions among the adapters act; None if there are none.

    Raises `ExpressionError` if they act at different places.
    """
    found = list(dict.fromkeys(adapter.positions for adapter in adapters if adapter.positions is not None))
    if len(found) > 1:
        one, other, *_ = found
        raise ExpressionError(f"one expression intervenes at {one} and at {other}; give them the same positions")
    return found[0] if found else None
