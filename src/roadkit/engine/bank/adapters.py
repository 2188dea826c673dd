"""`NamedAdapters`: the adapters of a bank by name; a directory is read when its adapter is first asked for.

adapters = NamedAdapters(model)
adapters.add("formal", "adapters/formal")
compose("formal*0.5", adapters)
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping

from torch import nn

from ... import kinds, modules
from ...adapter import Adapter
from ...errors import AdapterError, UnknownAdapter
from ...expression import Term, canonical, check_name
from ...intervene.files import is_intervention
from ...intervene.positions import Positions
from ...kinds import AnyAdapter

MAX_LOADED = 8  # rows hold what is in use; adapters in memory only save a second read while composing


class NamedAdapters(Mapping[str, Adapter]):
    """Name → what to rotate by. An intervention's subspaces have names too: `tasks:german`."""

    def __init__(self, model: nn.Module):
        self.model = model
        self._sources: dict[str, AnyAdapter | str | os.PathLike] = {}
        self._loaded: OrderedDict[str, Adapter] = OrderedDict()  # from directories, least recently used first
        self._content: dict[str, str] = {}  # name → content hash, known once it has been read
        self._parts: dict[str, tuple[str, ...]] = {}  # intervention → the names of its subspaces

    def add(self, name: str, source: AnyAdapter | str | os.PathLike) -> None:
        """Register an adapter, or a new version under an old name. Raises `AdapterError` or `ModelError`."""
        check_name(name)
        if isinstance(source, str | os.PathLike):
            if not os.path.isdir(source) and "/" not in os.fspath(source):
                raise AdapterError(f"adapter {name!r}: no such directory: {os.fspath(source)}")
            if not is_intervention(source):  # read when it is first used
                self._forget(name)
                self._sources[name] = source
                return
            source = kinds.load(source)
        kinds.check_fit(self.model, source)
        parts = {f"{name}:{label}": part for label, part in source.parts.items()}
        taken = [part for part in parts if part in self._sources and part not in self._parts.get(name, ())]
        if taken:
            raise AdapterError(f"intervention {name!r} has a subspace {taken[0]!r}, an adapter has that name already")
        self._forget(name)
        self._sources |= {name: source, **parts}
        self._parts[name] = tuple(parts)

    def remove(self, name: str) -> None:
        """Forget a name, and an intervention's subspaces with it. Raises `UnknownAdapter`."""
        if name not in self._sources:
            raise UnknownAdapter(f"no adapter {name!r}")
        self._forget(name)

    def key(self, terms: tuple[Term, ...]) -> str:
        """What identifies a composition: the adapters' content hashes and strengths; '' for the base."""
        for term in terms:
            if term.name not in self._content:
                self._read(term.name)
        return canonical(tuple(term._replace(name=self._content[term.name]) for term in terms))

    def reach(self, terms: tuple[Term, ...]) -> tuple[Positions | None, bool]:
        """Where a composition's interventions act (None: it has none), and whether it rotates linear layers.

        Raises `ExpressionError` if its interventions act at different places.
        """
        found = [self._sources.get(term.name) for term in terms]
        values = [source for source in found if not isinstance(source, str | os.PathLike | None)]
        intervening = [value for value in values if value.positions is not None]  # folders read later never are
        return kinds.common_positions(intervening), len(intervening) < len(found)

    def __getitem__(self, name: str) -> Adapter:
        return self._read(name)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the adapter
        return name in self._sources

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def _read(self, name: str) -> Adapter:
        """What to rotate by, from memory or from its directory; its content hash is known from then on."""
        source = self._sources.get(name)
        if source is None:
            raise UnknownAdapter(f"adapter {name!r} has been removed")
        if not isinstance(source, str | os.PathLike):
            self._content[name] = source.content_hash
            return source.rotation
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return self._loaded[name]
        loaded = Adapter.load(source)
        modules.match(self.model, loaded)
        self._loaded[name], self._content[name] = loaded, loaded.content_hash
        while len(self._loaded) > MAX_LOADED:
            self._loaded.popitem(last=False)
        return loaded

    def _forget(self, name: str) -> None:
        for known in (name, *self._parts.pop(name, ())):
            for table in (self._sources, self._loaded, self._content):
                table.pop(known, None)
