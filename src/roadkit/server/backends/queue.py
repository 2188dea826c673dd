"""`FairQueue`: who gets the next free row when several tenants wait.

    queue.put("acme", job); job = queue.pop()      # None when nobody waits
    queue.done("acme")                             # a popped job has finished

Policy: the waiting tenant with the fewest running requests goes first; among equals, the one that was served longest
ago; within a tenant, first come first served. A flood therefore delays others by at most one request's length.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from typing import Generic, TypeVar

from ...errors import QueueFull

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Bounded queues, one a tenant. Safe for two threads; no call waits."""

    def __init__(self, *, max_waiting: int, max_waiting_per_tenant: int):
        self.max_waiting, self.max_waiting_per_tenant = max_waiting, max_waiting_per_tenant
        self._queues: OrderedDict[str, deque[Item]] = OrderedDict()  # served longest ago first
        self._running: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sum(map(len, list(self._queues.values())))

    def put(self, tenant: str, item: Item) -> None:
        """Queue an item. Raises `QueueFull`."""
        with self._lock:
            total, own = len(self), len(self._queues.get(tenant, ()))
            if total >= self.max_waiting:
                raise QueueFull(f"{total} requests are waiting, at most {self.max_waiting} may; try again later")
            if own >= self.max_waiting_per_tenant:
                raise QueueFull(f"{own} of your requests are waiting, at most {self.max_waiting_per_tenant} may")
            self._queues.setdefault(tenant, deque()).append(item)

    def pop(self) -> Item | None:
        """The next item to run, counted as running until `done`."""
        with self._lock:
            waiting = [tenant for tenant, queue in self._queues.items() if queue]
            if not waiting:
                return None
            tenant = min(waiting, key=lambda tenant: self._running[tenant])  # the first of the least
            item = self._queues[tenant].popleft()
            self._running[tenant] += 1
            self._queues.move_to_end(tenant)
            return item

    def done(self, tenant: str) -> None:
        """An item that was popped has finished."""
        with self._lock:
            self._running[tenant] -= 1
            if self._running[tenant] <= 0:
                del self._running[tenant]
                if not self._queues.get(tenant):
                    self._queues.pop(tenant, None)

    def remove(self, tenant: str, item: Item) -> bool:
        """Take a waiting item out; False if it does not wait."""
        with self._lock:
            queue = self._queues.get(tenant)
            if queue is None or item not in queue:
                return False
            queue.remove(item)
            if not queue and not self._running[tenant]:
                del self._queues[tenant]
            return True
