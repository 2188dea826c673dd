"""`Bank`: many adapters resident side by side, each row of a batch rotated by its own.

    bank = Bank(model, {"formal": formal, "german": "adapters/german"})
    with bank.rows(["formal", None, "formal*0.5 + german"]):
        model(**batch_of_three)

    with bank.rows(["tasks:german + formal"]): ...   # an intervention's subspace, see `roadkit.intervene`

Activating an adapter is one copy into a slot of the bank's buffer; slot 0 is the identity. Compositions are cached by
what they compute, evicted least recently used, never while in use.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from ... import expression, modules
from ...errors import AdapterError, ExpressionError
from ...kinds import AnyAdapter
from ...rotation import check_group_size
from .adapters import NamedAdapters
from .buffer import RowBuffer
from .heads import HeadBank, Heads
from .layer import BankLayer, CurrentRows
from .slots import IDENTITY, Row, SlotTable


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
        self.model, self._bind, self._excluded = model, bind or hook, excluded
        self.device = next(model.parameters()).device
        self.layers: dict[str, BankLayer] = {}
        self.has_sites = False  # is any of them the output of a block, an attention or an MLP?
        self.heads = HeadBank(model)
        self._adapters = NamedAdapters(model)
        self._slots = SlotTable(slots)
        self._slot_heads: dict[int, Heads] = {}
        self._buffer = RowBuffer(slots, self.device)
        self._current = CurrentRows()
        self._undo: list[Callable[[], None]] = []
        self._closed = False
        named = modules.linear_layers(model) if target_layers else {}
        unknown = [name for name in target_layers if name not in named]
        if unknown:
            raise AdapterError(f"no layer {unknown[0]!r} that can be rotated in this model")
        widths = {name: int(modules.width_of(named[name]) or 0) for name in target_layers}
        for name, width in widths.items():
            check_group_size(width, 2, name)
        for size in group_sizes:
            check_group_size(size, size, "group_sizes")
        self._grow(widths, tuple(group_sizes))
        for name, source in (adapters or {}).items():
            self.add(name, source)

    # ---- adapters by name ---------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """The registered adapters."""
        return tuple(self._adapters)

    def add(self, name: str, source: AnyAdapter | str | os.PathLike) -> None:
        """Register an adapter, or a new version under an old name: rows in use keep the version they started with."""
        self._adapters.add(name, source)

    def remove(self, name: str) -> None:
        """Forget a name (an intervention's subspaces with it); rows in use stay until released."""
        self._adapters.remove(name)

    def parse(self, text: str | None) -> tuple[expression.Term, ...]:
        """The terms of an expression over the registered names; () for None, the base model."""
        return () if text is None else expression.parse(text, self._adapters)

    # ---- rows -------------------------------------------------------------------------------------------------

    def acquire(self, terms: tuple[expression.Term, ...]) -> Row:
        """Make a composition resident and hold its slot until `release`. Raises `BankFull` if every slot is held."""
        if self._closed:
            raise AdapterError("the bank is closed, its hooks are gone")
        if not terms:
            return Row(IDENTITY, "")
        positions, rotates = self._adapters.reach(terms)
        key = self._adapters.key(terms)
        slot = self._slots.find(key)
        if slot is None:
            self._slots.check_room()  # before the work of composing, which a waiting request would repeat every step
            key, slot = self._compose(terms)
        self._slots.hold(slot)
        return Row(slot if rotates else IDENTITY, key, IDENTITY if positions is None else slot, positions)

    def _compose(self, terms: tuple[expression.Term, ...]) -> tuple[str, int]:
        """Put a composition into a slot. → its key, its slot"""
        composed = expression.compose(terms, self._adapters)
        key = self._adapters.key(terms)  # a directory that was read again may hold something else by now
        slot = self._slots.find(key)
        if slot is None:
            widths = {name: width for name, (width, _) in composed.layout.layers.items()}
            self._grow(widths, composed.group_sizes)
            slot = self._slots.take(key)
            try:
                self._buffer.write(slot, composed)
                self.heads.prepare(composed.heads)
            except BaseException:  # a device without memory: nobody may find a row that was not written
                self._slots.drop(key)
                raise
            self._slot_heads[slot] = composed.heads
        return key, slot

    def release(self, row: Row) -> None:
        """Let go of a row; it stays resident until its slot is needed."""
        if row.held != IDENTITY:
            self._slots.release(row.held)

    @property
    def num_held(self) -> int:
        """Compositions in use."""
        return self._slots.num_held

    def resident(self) -> dict[str, int]:
        """Key → slot of what is in memory now."""
        return self._slots.resident()

    def heads_of(self, row: Row) -> Heads:
        """The heads that a row's adapters bring along; {} for most."""
        return self._slot_heads.get(row.slot, {})

    @contextmanager
    def rows(self, adapters: Sequence[str | None]) -> Iterator[Bank]:
        """One expression (or None, the base) for each sample of the batch that runs inside the block.

        Interventions must act on all positions here; `roadkit.intervene.intervened` knows where prompts end.
        """
        held: list[Row] = []
        try:
            for text in adapters:
                held.append(self.acquire(self.parse(text)))
                if (where := held[-1].positions) is not None and not where.generated:
                    raise ExpressionError(f"{text!r} intervenes at {where}; a bank's rows act on all positions")
            linear = torch.tensor([row.slot for row in held], device=self.device)
            sites = torch.tensor([row.site_slot for row in held], device=self.device)
            intervenes = any(row.site_slot for row in held)
            with self.using(linear, sites if intervenes else None), self.heads.active(list(map(self.heads_of, held))):
                yield self
        finally:
            for row in held:
                self.release(row)

    def using(self, linear: Tensor | None, sites: Tensor | None = None) -> AbstractContextManager[None]:
        """Rotate by slots that the caller holds for the length of a block: see `CurrentRows`."""
        return self._current.using(linear, sites)

    def close(self) -> None:
        """Remove the bank's hooks; the model is then exactly what it was, and the bank of no further use."""
        self._closed = True
        while self._undo:
            self._undo.pop()()
        self.heads.close()

    # ---- layers -----------------------------------------------------------------------------------------------

    @property
    def address(self) -> int:
        """Where the rows lie; changes when the bank grows, and captured graphs are then stale."""
        return self._buffer.rows.data_ptr()

    def _grow(self, widths: Mapping[str, int], group_sizes: tuple[int, ...]) -> None:
        """Make room for layers and pairings that the bank does not know yet, keeping resident rows."""
        new = {name: width for name, width in widths.items() if name not in self.layers}
        known = self._buffer.group_sizes
        sizes = known + tuple(size for size in group_sizes if size not in known)
        if not new and sizes == known:
            return
        found = modules.resolve(self.model, new)
        for name in new:
            if found[name] in self._excluded:
                raise AdapterError(
                    f"{name} cannot be rotated here: only some tokens reach it; merge the adapter instead"
                )
        for name, width in new.items():
            layer = self.layers[name] = BankLayer(name, found[name], width, self._current)
            self.has_sites |= layer.is_site
            self._undo.append(self._bind(layer))
        widths = {name: layer.width for name, layer in self.layers.items()}
        self._buffer.grow(widths, sizes or (2,), keep=self._slots.resident().values())
        for layer in self.layers.values():
            layer.point_at(self._buffer)


def hook(layer: BankLayer) -> Callable[[], None]:
    """Let a layer rotate by a forward hook on its module. → how to undo it"""
    return layer.module.register_forward_hook(layer).remove
