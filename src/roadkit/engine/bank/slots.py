"""Which slot of a bank holds which composition.

    table = SlotTable(64)
    slot = table.take("content's key")      # the least recently used one that nobody holds
    table.hold(slot); table.release(slot)

Compositions stay where they are until their slot is needed; a slot that is held is never taken.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from ...errors import BankFull
from ...intervene.positions import Positions

IDENTITY = 0  # the slot that rotates nothing: of base requests, and of what an expression leaves alone


class Row(NamedTuple):
    """A slot that holds one composition, and what identifies its content.

    slot        what linear layers rotate by; `IDENTITY` if the expression only intervenes
    key         names the content; '' for the base model
    site_slot   what hidden states rotate by, at `positions`; `IDENTITY` if the expression does not intervene
    positions   the tokens whose hidden states rotate; None if none do
    """

    slot: int
    key: str
    site_slot: int = IDENTITY
    positions: Positions | None = None

    @property
    def held(self) -> int:
        """The slot that the row takes up; `IDENTITY` for the base model."""
        return self.slot or self.site_slot


class SlotTable:
    """Slots 1 to `num_slots`, by the key of what they hold."""

    def __init__(self, num_slots: int):
        self.num_slots = num_slots
        self._slots: OrderedDict[str, int] = OrderedDict()  # key → slot, least recently used first
        self._users: dict[int, int] = {}
        self._free = list(range(num_slots, 0, -1))

    @property
    def num_held(self) -> int:
        """Slots in use."""
        return sum(count > 0 for count in self._users.values())

    def resident(self) -> dict[str, int]:
        """Key → slot of everything that is in memory."""
        return dict(self._slots)

    def find(self, key: str) -> int | None:
        """The slot that holds `key`, which becomes the one used last; None if there is none."""
        if key in self._slots:
            self._slots.move_to_end(key)
        return self._slots.get(key)

    def check_room(self) -> None:
        """Raise `BankFull` if `take` would find no slot."""
        if not self._free and all(self._users.get(slot) for slot in self._slots.values()):
            raise BankFull(f"all {self.num_slots} bank slots are in use; raise slots or wait for a request to finish")

    def take(self, key: str) -> int:
        """A slot for `key`: a free one, or that of the least recently used content which nobody holds."""
        if self._free:
            slot = self._free.pop()
        else:
            slot = self._slots.pop(next(old for old, slot in self._slots.items() if not self._users.get(slot)))
        self._slots[key] = slot
        return slot

    def drop(self, key: str) -> None:
        """Forget what `take` was told, whose content never came to be; the slot is free."""
        self._free.append(self._slots.pop(key))

    def hold(self, slot: int) -> None:
        """Keep a slot's content until `release`; slots may be held several times."""
        self._users[slot] = self._users.get(slot, 0) + 1

    def release(self, slot: int) -> None:
        """Undo one `hold`."""
        self._users[slot] -= 1
