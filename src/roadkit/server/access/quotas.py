"""`Meters`: what each key has used, against its `Quota`.

    meter = meters.of(key)
    meter.enter("formal*0.7", count=1)         # ApiError 429 with Retry-After if that is too much
    meter.leave("formal*0.7", count=1, tokens=120)

Rates are token buckets that hold one minute's worth, on a clock that never goes back.
"""

from __future__ import annotations

import time
from collections import Counter

from ..errors import ApiError, overloaded
from ..settings import Quota
from .keys import Key


class Bucket:
    """Fills by `per_minute` up to one minute's worth; may be overdrawn, and is then waited for."""

    def __init__(self, per_minute: float):
        self.rate, self.size, self.level, self._at = per_minute / 60, per_minute, per_minute, time.monotonic()

    def wait(self) -> float:
        """Seconds until something may be taken; 0 is now."""
        now = time.monotonic()
        self.level, self._at = min(self.size, self.level + max(0.0, now - self._at) * self.rate), now
        return 0.0 if self.level >= min(1.0, self.size) else (min(1.0, self.size) - self.level) / self.rate

    def take(self, amount: float) -> None:
        self.level -= amount


class Meter:
    """Used on the event loop only."""

    def __init__(self, quota: Quota):
        self.quota = quota
        self._requests = Bucket(quota.requests_per_minute) if quota.requests_per_minute else None
        self._tokens = Bucket(quota.tokens_per_minute) if quota.tokens_per_minute else None
        self._live: Counter[str] = Counter()

    def enter(self, expression: str, *, count: int = 1) -> None:
        """Count a request for `count` answers in, or raise `ApiError` 429; 400 if it would be too much at any time."""
        quota = self.quota
        if quota.concurrency is not None and count > quota.concurrency:
            raise ApiError(400, f"one request asks for {count} answers, your key may have {quota.concurrency} at once")
        for bucket, what in ((self._requests, "requests"), (self._tokens, "tokens")):
            if bucket is not None and (seconds := bucket.wait()) > 0:
                raise overloaded(f"your key's {what} per minute are used up", retry_after=seconds)
        if quota.concurrency is not None and self._live.total() + count > quota.concurrency:
            raise overloaded(f"your key may have {quota.concurrency} answers running at once")
        if quota.live_expressions is not None and expression not in self._live:
            if len(self._live) >= quota.live_expressions:
                raise overloaded(f"your key may have {quota.live_expressions} different models running at once")
        if self._requests is not None:
            self._requests.take(count)
        self._live[expression] += count

    def leave(self, expression: str, *, count: int = 1, tokens: int = 0) -> None:
        """Count a request out, with the tokens it read and wrote."""
        self._live[expression] -= count
        if self._live[expression] <= 0:
            del self._live[expression]
        if self._tokens is not None:
            self._tokens.take(tokens)


class Meters:
    """The meters of all keys. Used on the event loop only."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Quota], Meter] = {}

    def of(self, key: Key) -> Meter:
        """What a key has used so far of its quota; another quota begins anew."""
        if (known := (key.name, key.quota)) not in self._known:
            self._known[known] = Meter(key.quota)
        return self._known[known]
