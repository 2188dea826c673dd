"""Uploads, replacements, deletions, kills at any file operation, watched folders and running requests, in any order."""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from roadkit import store
from roadkit.server.access.keys import LOCAL
from roadkit.server.adapters.catalog import Factor
from roadkit.server.adapters.folders import Folders
from tests.server.adapters.memory import CONTENTS, new_service

LIMIT = 2
NAMES = st.sampled_from(["a", "b", "org/c"])


HASHES = [store.parse(*content).content_hash for content in CONTENTS]
NUMBERS = st.integers(0, len(CONTENTS) - 1)


class Killed(BaseException):
    """The process is gone: from here on it touches no file."""


class Death:
    """Raises `Killed` at a file operation, and at every one after it, clean-up included, as after SIGKILL."""

    EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree")

    def __init__(self):
        self.left: int | None = None
        self.folder = ""
        sys.addaudithook(self._see)  # for good: hooks cannot be taken away

    def _see(self, event, arguments):
        if self.left is None or event not in self.EVENTS or self.folder not in str(arguments[0]):
            return
        self.left -= 1
        if self.left < 0:
            raise Killed


DEATH = Death()


class Lifecycle(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        self.root = Path(tempfile.mkdtemp(prefix="registry-state-"))
        DEATH.folder = str(self.root)
        (self.root / "watched").mkdir()
        self.expected: dict[str, tuple[int, bool]] = {}  # name → content, pinned
        self.watched: int | None = None
        self.service: Any = None
        self.boot()

    def boot(self):
        if self.service is not None:
            self.service.inventory.close()
        self.held = []  # (lease, content)
        self.service = new_service(registry=self.root / "kept", max_resident=LIMIT)
        self.folders = Folders(self.service.catalog, self.service.residents, [str(self.root / "watched")])
        self.folders.start()
        self.service.inventory.restore()

    def current(self, name):
        entry = self.service.catalog.own(LOCAL, name)
        if entry is None:
            return None
        adapter = store.parse(*store.read(entry.source))
        return HASHES.index(adapter.content_hash), entry.pinned

    @rule(name=NAMES, number=NUMBERS, pinned=st.booleans())
    def upload(self, name, number, pinned):
        self.service.inventory.keep(LOCAL, name, *CONTENTS[number], pinned=pinned)
        self.expected[name] = number, pinned

    @rule(name=NAMES, number=NUMBERS, pinned=st.booleans(), at=st.integers(0, 25))
    def upload_and_kill(self, name, number, pinned, at):
        before = self.expected.get(name)
        DEATH.left = at
        try:
            self.service.inventory.keep(LOCAL, name, *CONTENTS[number], pinned=pinned)
            before = number, pinned  # acknowledged: only the new one will do
        except Killed:
            pass
        finally:
            DEATH.left = None
        self.boot()
        after = self.current(name)
        assert after in (before, (number, pinned))
        self.remember(name, after)

    @rule(name=NAMES, at=st.integers(0, 8))
    def delete_and_kill(self, name, at):
        entry = self.service.catalog.own(LOCAL, name)
        if entry is None:
            return
        DEATH.left = at
        gone = False
        try:
            self.service.inventory.forget(entry)
            gone = True
        except Killed:
            pass
        finally:
            DEATH.left = None
        self.boot()
        after = self.current(name)
        assert after in ((None,) if gone else (None, self.expected[name]))
        self.remember(name, after)

    def remember(self, name, after):
        self.expected.pop(name, None)
        if after is not None:
            self.expected[name] = after

    @rule(name=NAMES)
    def delete(self, name):
        entry = self.service.catalog.own(LOCAL, name)
        assert (entry is None) == (name not in self.expected)
        if entry is not None:
            self.service.inventory.forget(entry)
            del self.expected[name]

    @rule(name=NAMES, strength=st.sampled_from([1.0, 0.5]))
    def acquire(self, name, strength):
        entry = self.service.catalog.find(LOCAL, name)
        if entry is None:
            assert name not in self.expected
            return
        lease = self.service.residents.acquire([Factor(entry, strength=strength)])
        content = HASHES[self.expected[name][0]] if strength == 1 else None
        assert content in (None, lease.adapter.content_hash)
        self.held.append((lease, lease.adapter.content_hash))

    @rule(data=st.data())
    def release(self, data):
        if self.held:
            lease, _ = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
            self.service.residents.release(lease)

    @rule(number=NUMBERS)
    def write_watched(self, number):
        store.save(store.parse(*CONTENTS[number]), self.root / "watched" / "seen")
        self.watched = number
        self.folders.poll()
        self.folders.poll()  # the second one that sees the same files takes them

    @rule()
    def break_watched(self):
        """Half a copy: the version before stays with those who use it, and is what others get while it is in memory."""
        if self.watched is not None:
            weights = self.root / "watched" / "seen" / store.WEIGHTS
            weights.write_bytes(weights.read_bytes()[:50])
            self.folders.poll()
            self.folders.poll()
            shutil.rmtree(self.root / "watched" / "seen")
            self.folders.poll()
            self.folders.poll()
            self.watched = None

    @rule()
    def acquire_watched(self):
        entry = self.service.catalog.find(LOCAL, "seen")
        assert (entry is None) == (self.watched is None)
        if entry is not None:
            lease = self.service.residents.acquire([Factor(entry)])
            assert self.watched is not None
            assert lease.adapter.content_hash == HASHES[self.watched]
            self.held.append((lease, lease.adapter.content_hash))

    @rule()
    def restart(self):
        self.boot()

    @invariant()
    def running_requests_keep_what_they_started_with(self):
        for lease, content in getattr(self, "held", ()):
            assert self.service.backend.loaded[lease.name].content_hash == content

    @invariant()
    def memory_is_bounded(self):
        if hasattr(self, "service"):
            pinned = sum(pinned for _, pinned in self.expected.values())
            assert len(self.service.backend.loaded) <= LIMIT + pinned + len(self.held)

    @invariant()
    def the_catalog_is_what_was_acknowledged(self):
        if hasattr(self, "service"):
            names = {entry.name for entry in self.service.catalog.all() if entry.tenant == LOCAL}
            assert names == set(self.expected)
            assert {name: self.current(name) for name in names} == self.expected

    def teardown(self):
        DEATH.left = None
        if getattr(self, "service", None) is not None:
            self.service.close()
            shutil.rmtree(self.root)


Lifecycle.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=cast(Any, list(HealthCheck))
)
test_any_order_of_events = Lifecycle.TestCase


def test_a_pinned_adapter_that_is_damaged_does_not_stop_the_server(tmp_path):
    service = new_service(registry=tmp_path)
    entry = service.inventory.keep(LOCAL, "a", *CONTENTS[0], pinned=True)
    (Path(entry.source) / store.WEIGHTS).write_bytes(b"")
    service.close()
    service = new_service(registry=tmp_path)
    service.inventory.restore()
    assert service.catalog.own(LOCAL, "a") == entry
    service.close()
