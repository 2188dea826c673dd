"""Uploads on disk: nothing half written, nothing foreign deleted, nothing changed served."""

import asyncio
import errno
from pathlib import Path

import pytest

from roadkit import store
from roadkit.errors import AdapterError, RoadkitError
from roadkit.server.access.keys import LOCAL
from roadkit.server.adapters.catalog import Factor
from tests.server.adapters.memory import CONTENTS, new_service
from tests.server.process import parts
from tests.server.tenants import BODY


def test_what_cannot_be_read_is_left_alone(tmp_path):
    """A damaged pointer hides an adapter; it does not delete it."""
    service = new_service(registry=tmp_path)
    entry = service.inventory.keep(LOCAL, "a", *CONTENTS[0])
    (tmp_path / "_local" / "_a" / "current.json").write_text("{")
    assert service.inventory.uploads is not None
    assert service.inventory.uploads.entries() == [] and Path(entry.source).is_dir()
    service.close()


def test_what_is_not_the_registrys_stays(tmp_path):
    """A root shared with adapters, a checkout or a disk's own folders; an unfinished upload goes all the same."""
    foreign = ["adapters/formal/adapter_config.json", ".git/objects/ab", "_mine/_notes/todo.txt", "lost+found/x/y"]
    for name in foreign:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("kept")
    unfinished = tmp_path / "_local" / "_a" / "versions" / ".tmp"
    unfinished.mkdir(parents=True)
    service = new_service(registry=tmp_path)
    assert service.inventory.uploads is not None
    assert service.inventory.uploads.entries() == []
    assert all((tmp_path / name).read_text() == "kept" for name in foreign)
    assert not (tmp_path / "_local" / "_a").exists()
    service.close()


def test_changed_bytes_are_not_served(tmp_path):
    """What was hashed is what is activated, also when it is read again."""
    service = new_service(registry=tmp_path)
    entry = service.inventory.keep(LOCAL, "a", *CONTENTS[0])
    (Path(entry.source) / store.WEIGHTS).write_bytes(CONTENTS[1][1])
    with pytest.raises(AdapterError, match="damaged"):
        service.residents.acquire([Factor(entry)])
    service.close()


def test_a_full_disk_leaves_the_old_version(local, made, tmp_path, monkeypatch):
    async def run():
        async with local(registry=tmp_path) as (_, http):
            assert (await http.post("/v1/adapters", data={"name": "x"}, files=parts(made(1)))).status_code == 201
            before = (await http.post("/v1/completions", json={**BODY, "model": "x"})).json()["choices"][0]["text"]

            def full(*args):
                raise OSError(errno.ENOSPC, "No space left on device")

            monkeypatch.setattr("os.fsync", full)
            refused = await http.post("/v1/adapters", data={"name": "x"}, files=parts(made(2)))
            monkeypatch.undo()
            assert refused.status_code == 507 and str(tmp_path) not in refused.text
            after = (await http.post("/v1/completions", json={**BODY, "model": "x"})).json()["choices"][0]["text"]
            assert after == before and not [path for path in tmp_path.rglob("*") if ".tmp" in path.name]

    asyncio.run(run())


def test_two_servers_do_not_share_a_registry(local, tmp_path):
    async def run():
        async with local(registry=tmp_path):
            with pytest.raises(RoadkitError, match="another server"):
                async with local(registry=tmp_path):
                    pass

    asyncio.run(run())
