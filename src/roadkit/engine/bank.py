"""`Bank`: many adapters resident side by side, each row of a batch rotated by its own.

    bank = Bank(model, {"formal": formal, "german": "adapters/german"})
    with bank.rows(["formal", None, "formal*0.5 + german"]):
        model(**batch_of_three)

    with bank.rows(["tasks:german + formal"]): ...   # an intervention's subspace, see `roadkit.intervene`

One buffer [slots, 1 + sizes, width] holds, per slot, a and one b-plane for each group size, over all rotated layers
laid end to end: activating an adapter is one copy. Slot 0 is the identity. Rows are cached by what they compute, evicted
least recently used, never while in use.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import expression, kinds, modules
from ..adapter import Adapter, Layout
from ..errors import AdapterError, BankFull, ExpressionError, UnknownAdapter
from ..intervene.files import is_intervention
from ..intervene.positions import Positions
from ..kinds import AnyAdapter
from ..rotation import check_group_size
from .bank_layer import BankLayer
from .heads import HeadBank

IDENTITY = 0


class Row(NamedTuple):
    """A slot that holds one composition, and what identifies its content.

    slot        what linear layers rotate by; the identity where an expression only intervenes
    site_slot   what hidden states rotate by, at `positions`; the identity where an expression does not intervene
    """

    slot: int
    key: str
    site_slot: int = IDENTITY
    positions: Positions | None = None


class Bank:
    """Adapters by name, resident in `slots` rows beside the identity.

    model         any Hugging Face model; forward hooks are placed on the adapted layers until `close`
    adapters      name → `Adapter`, or a directory that is read when first used; or an `Intervention`, or its directory,
                  whose subspaces then have names too: `tasks:german`
    slots         how many different compositions can be resident at once
    target_layers names of the layers to prepare; by default those that the given adapters rotate, and more are
                  added as adapters arrive
    group_sizes   pairings to hold a plane for; by default those of the adapters, and more are added likewise
    excluded      layers that no adapter may rotate here
    bind          how a layer is made to rotate, returning how to undo it; by default a forward hook on its module
    """

    def __init__(
        self,
        model: nn.Module,
        adapters: Mapping[str, AnyAdapter | str | os.PathLike] | None = None,
        *,
        slots: int = 64,
        target_layers: Sequence[str] = (),
        group_sizes: Sequence[int] = (),
        excluded: Collection[nn.Module | None] = (),
        bind: Callable[[BankLayer], Callable[[], None]] | None = None,
    ):
        if slots < 1:
            raise AdapterError(f"a bank needs at least one slot, got {slots}")
        self.model, self._bind, self._excluded = model, bind or _hook, excluded
        self.num_slots = slots
        self.device = next(model.parameters()).device
        self.current: Tensor | None = None  # [rows] int64 slots, while a forward pass runs
        self.current_sites: Tensor | None = None  # the same for hidden states
        self.layers: dict[str, BankLayer] = {}
        self.has_sites = False  # is any of them the output of a block, an attention or an MLP?
        self.heads = HeadBank(model)
        self._layout = Layout({})
        self._group_sizes: tuple[int, ...] = ()
        self._buffer = torch.empty(0)
        self._undo: list[Callable[[], None]] = []
        self._sources: dict[str, AnyAdapter | str | os.PathLike] = {}
        self._loaded: OrderedDict[str, Adapter] = OrderedDict()
        self._rows: OrderedDict[str, int] = OrderedDict()  # key → slot, least recently used first
        self._slot_heads: dict[int, Mapping] = {}
        self._users: dict[int, int] = {}
        self._free = list(range(slots, 0, -1))
        self._closed = False
        self._content: dict[str, str] = {}  # name → content hash, known once it has been read
        self._parts: dict[str, tuple[str, ...]] = {}  # intervention → the names of its subspaces
        named = modules.linear_layers(model) if target_layers else {}
        unknown = [name for name in target_layers if name not in named]
        if unknown:
            raise AdapterError(f"no layer {unknown[0]!r} that can be rotated in this model")
        widths = {name: int(modules.width_of(named[name]) or 0) for name in target_layers}
        for name, width in widths.items():
            check_group_size(width, 2, name)
        for size in group_sizes:
            check_group_size(size, size, "group_sizes")
        self._grow({name: (width, 2) for name, width in widths.items()}, tuple(group_sizes))
        for name, source in (adapters or {}).items():
            self.add(name, source)

    # ---- adapters by name ---------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """The registered adapters."""
        return tuple(self._sources)

    def add(self, name: str, source: AnyAdapter | str | os.PathLike) -> None:
        """Register an adapter, or a new version under an old name: rows in use keep the version they started with."""
        if expression._NAME.fullmatch(name) is None:
            raise AdapterError(f"{name!r} is no adapter name: letters, digits and _.:/@- after a letter, digit or _")
        if isinstance(source, str | os.PathLike):
            if not os.path.isdir(source) and "/" not in os.fspath(source):
                raise AdapterError(f"adapter {name!r}: no such directory: {os.fspath(source)}")
            if not is_intervention(source):  # read when it is first used
                self._forget(name)
                self._sources[name] = source
                return
            source = kinds.load(source)
        if getattr(source, "source", None) is not None:
            raise AdapterError(f"{name!r} takes hidden states from another run; `intervened` does that, a bank cannot")
        kinds.check_fit(self.model, source)
        parts = {f"{name}:{label}": part for label, part in source.parts.items()}
        taken = [part for part in parts if part in self._sources and part not in self._parts.get(name, ())]
        if taken:
            raise AdapterError(f"intervention {name!r} has a subspace {taken[0]!r}, an adapter has that name already")
        self._forget(name)
        self._sources |= {name: source, **parts}
        self._parts[name] = tuple(parts)

    def remove(self, name: str) -> None:
        """Forget a name (an intervention's subspaces with it); rows in use stay until released."""
        if name not in self._sources:
            raise UnknownAdapter(f"no adapter {name!r}")
        self._forget(name)

    def _forget(self, name: str) -> None:
        for known in (name, *self._parts.pop(name, ())):
            for table in (self._sources, self._loaded, self._content):
                table.pop(known, None)

    def adapter(self, name: str) -> Adapter:
        """The adapter of a registered name, read from its directory when it is not in memory."""
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
        while len(self._loaded) > 8:  # rows hold what is in use; these only save a second read while composing
            self._loaded.popitem(last=False)
        return loaded

    # ---- rows -------------------------------------------------------------------------------------------------

    def parse(self, text: str | None) -> tuple[expression.Term, ...]:
        """The terms of an expression over the registered names; () for None, the base model."""
        return () if text is None else expression.parse(text, self._sources)

    def key(self, terms: tuple[expression.Term, ...]) -> str:
        """What identifies a row's content: the adapters' content hashes and strengths; '' for the base."""
        for term in terms:
            if term.name not in self._content:
                self.adapter(term.name)
        return expression.canonical(tuple(term._replace(name=self._content[term.name]) for term in terms))

    def acquire(self, terms: tuple[expression.Term, ...]) -> Row:
        """Make a composition resident and hold its slot until `release`. Raises `BankFull` when every slot is held."""
        if self._closed:
            raise AdapterError("the bank is closed, its hooks are gone")
        if not terms:
            return Row(IDENTITY, "")
        positions, rotates = self._reach(terms)
        key = self.key(terms)
        if key not in self._rows:
            self._check_room()  # before the work of composing, which a waiting request would repeat every step
            composed = expression.compose(terms, _Lookup(self))
            key = self.key(terms)  # a directory that was read again may hold something else by now
            if key not in self._rows:
                self._grow(composed.layout.layers, composed.group_sizes)
                slot = self._take_slot()
                self._write(slot, composed)
                self._rows[key] = slot
        self._rows.move_to_end(key)
        slot = self._rows[key]
        self._users[slot] = self._users.get(slot, 0) + 1
        return Row(slot if rotates else IDENTITY, key, IDENTITY if positions is None else slot, positions)

    def release(self, row: Row) -> None:
        """Let go of a row; it stays resident until its slot is needed."""
        held = row.slot or row.site_slot
        if held != IDENTITY:
            self._users[held] -= 1

    def _reach(self, terms: tuple[expression.Term, ...]) -> tuple[Positions | None, bool]:
        """Where an expression's interventions act (None: it has none), and whether it rotates linear layers."""
        found = [self._sources.get(term.name) for term in terms]
        values = [source for source in found if not isinstance(source, str | os.PathLike | None)]
        intervening = [value for value in values if value.positions is not None]  # folders read later never are
        return kinds.common_positions(intervening), len(intervening) < len(found)

    @property
    def address(self) -> int:
        """Where the rows lie; changes when the bank grows, and captured graphs are then stale."""
        return self._buffer.data_ptr()

    def heads_of(self, row: Row) -> Mapping:
        """The heads that a row's adapters bring along; {} for most."""
        return self._slot_heads.get(row.slot, {})

    def resident(self) -> dict[str, int]:
        """Key → slot of what is in memory now."""
        return dict(self._rows)

    @contextmanager
    def rows(self, adapters: Sequence[str | None]) -> Iterator[Bank]:
        """One expression (or None, the base) for each sample of the batch that runs inside the block.

        Interventions must act on all positions here; `roadkit.intervene.intervened` knows where prompts end.
        """
        held: list[Row] = []
        previous = self.current, self.current_sites
        try:
            for text in adapters:
                held.append(self.acquire(self.parse(text)))
                if (where := held[-1].positions) is not None and not where.generated:
                    raise ExpressionError(f"{text!r} intervenes at {where}; a bank's rows act on all positions")
            self.current = torch.tensor([row.slot for row in held], device=self.device)
            if any(row.site_slot for row in held):
                self.current_sites = torch.tensor([row.site_slot for row in held], device=self.device)
            with self.heads.active([self.heads_of(row) for row in held]):
                yield self
        finally:
            self.current, self.current_sites = previous
            for row in held:
                self.release(row)

    def close(self) -> None:
        """Remove the bank's hooks; the model is then exactly what it was, and the bank of no further use."""
        self._closed = True
        while self._undo:
            self._undo.pop()()
        self.heads.close()

    # ---- storage ----------------------------------------------------------------------------------------------

    def _check_room(self) -> None:
        if not self._free and all(self._users.get(slot) for slot in self._rows.values()):
            raise BankFull(f"all {self.num_slots} bank slots are in use; raise slots or wait for a request to finish")

    def _take_slot(self) -> int:
        if self._free:
            return self._free.pop()
        key = next(key for key, slot in self._rows.items() if not self._users.get(slot))  # least recently used
        return self._rows.pop(key)

    def _write(self, slot: int, adapter: Adapter) -> None:
        row = self._buffer[slot]
        if adapter.layout.spans == self._layout.spans and len(self._group_sizes) == 1:
            row[0], row[1] = adapter.a, adapter.b
        else:
            row.zero_()
            row[0] = 1.0
            for name in adapter.layout.layers:
                a, b, group_size = adapter.layer(name)
                span = self._layout.spans[name]
                row[0, span], row[1 + self._group_sizes.index(group_size), span] = a, b
        self._slot_heads[slot] = adapter.heads
        self.heads.prepare(adapter.heads)

    def _grow(self, layers: Mapping[str, tuple[int, int]], group_sizes: tuple[int, ...]) -> None:
        """Make room for layers and pairings that the bank does not know yet, keeping resident rows."""
        new = {name: width for name, (width, _) in layers.items() if name not in self.layers}
        sizes = self._group_sizes + tuple(size for size in group_sizes if size not in self._group_sizes)
        if not new and sizes == self._group_sizes:
            return
        found = modules.resolve(self.model, new)
        for name in new:
            if found[name] in self._excluded:
                raise AdapterError(
                    f"{name} cannot be rotated here: only some tokens reach it; merge the adapter instead"
                )
        for name, width in new.items():
            self.layers[name] = BankLayer(self, name, found[name], width)
            self.has_sites |= self.layers[name].is_site
            self._undo.append(self._bind(self.layers[name]))
        old_layout, old_sizes, old = self._layout, self._group_sizes, self._buffer
        # one nominal group size orders the bank by name, as a whole-model adapter of one group size is ordered
        self._layout = Layout({name: (layer.width, 2) for name, layer in self.layers.items()})
        self._group_sizes = sizes or (2,)
        self._buffer = torch.empty(
            self.num_slots + 1, 1 + len(self._group_sizes), self._layout.width, device=self.device
        )
        for slot in (IDENTITY, *self._rows.values()):
            self._buffer[slot] = 0
            self._buffer[slot, 0] = 1
            if slot == IDENTITY:
                continue
            for name, span in old_layout.spans.items():
                target = self._layout.spans[name]
                self._buffer[slot, 0, target] = old[slot, 0, span]
                for plane, size in enumerate(old_sizes, 1):
                    self._buffer[slot, 1 + self._group_sizes.index(size), target] = old[slot, plane, span]
        for name, layer in self.layers.items():
            layer.bind(self._buffer, self._layout.spans[name].start, self._group_sizes)


def _hook(layer: BankLayer) -> Callable[[], None]:
    return layer.module.register_forward_hook(layer).remove


class _Lookup(Mapping):
    """The bank's registered adapters as the mapping that `compose` reads."""

    def __init__(self, bank: Bank):
        self._bank = bank

    def __getitem__(self, name: str) -> Adapter:
        return self._bank.adapter(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._bank.names)

    def __len__(self) -> int:
        return len(self._bank.names)
