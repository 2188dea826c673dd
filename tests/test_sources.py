"""The two files of an adapter from folders, links, addresses and the hub: read whole, of one version, or refused."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from roadkit import sources, store
from roadkit.adapter import Adapter
from roadkit.errors import AdapterError
from roadkit.store import CONFIG, WEIGHTS
from tests.conftest import random_parameters


def adapter(variant="road_1", group_size=4) -> Adapter:
    parameters = {"model.layers.0.self_attn.q_proj": random_parameters(variant, 24, group_size)}
    return Adapter.from_parameters(parameters, variant=variant, group_size=group_size)


def write(folder: Path) -> Path:
    adapter().save(folder)
    return folder


# ---- folders ----------------------------------------------------------------------------------------------------


def test_missing_things_are_named(tmp_path):
    with pytest.raises(AdapterError, match="'nothing-here': no such directory"):
        Adapter.load("nothing-here")
    with pytest.raises(AdapterError, match=r"adapter_config.json is missing$"):
        Adapter.load(tmp_path)
    write(tmp_path / "a")
    (tmp_path / "a" / WEIGHTS).unlink()
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors is missing$"):
        Adapter.load(tmp_path / "a")
    with pytest.raises(
        AdapterError, match=r"an adapter is a directory with adapter_config.json and .*, this is a file"
    ):
        Adapter.load(tmp_path / "a" / CONFIG)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_links_that_leave_the_directory_are_refused(tmp_path, name):
    folder = write(tmp_path / "adapter")
    secret = tmp_path / "secret"
    secret.write_bytes((folder / name).read_bytes())
    for target in (secret, "../secret", tmp_path / "not there"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)
        with pytest.raises(AdapterError, match=f"{name} is a symbolic link that leaves the directory"):
            Adapter.load(folder)


def test_links_within_the_directory_and_to_it_are_followed(tmp_path):
    folder = write(tmp_path / "adapter")
    (folder / WEIGHTS).rename(folder / "blob")
    (folder / WEIGHTS).symlink_to("blob")
    (tmp_path / "current").symlink_to("adapter")
    assert Adapter.load(tmp_path / "current") == adapter()


def test_links_within_one_model_of_the_hub_cache_are_followed(tmp_path):
    model = tmp_path / "models--owner--name"
    folder = write(model / "snapshots" / "abc")
    (model / "blobs").mkdir()
    (folder / WEIGHTS).rename(model / "blobs" / "f00")
    (folder / WEIGHTS).symlink_to("../../blobs/f00")
    assert Adapter.load(folder) == adapter()
    write(tmp_path / "models--evil")
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(f"../../../models--evil/{WEIGHTS}")
    with pytest.raises(AdapterError, match="symbolic link that leaves"):
        Adapter.load(folder)


def test_what_is_no_regular_file_is_refused(tmp_path):
    folder = write(tmp_path / "adapter")
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)  # reading it would wait for ever
    with pytest.raises(AdapterError, match="adapter_model.safetensors is not a regular file"):
        Adapter.load(folder)


def test_unreadable_files_are_an_adapter_error(tmp_path, monkeypatch):
    folder = write(tmp_path / "adapter")

    def fail(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(AdapterError, match=r"adapter: cannot be read: .*Permission denied"):
        Adapter.load(folder)


def test_reader_never_mixes_two_versions(tmp_path, monkeypatch):
    """The writer swaps directories between the reader's two reads."""
    old, new = adapter("road_1", 4), adapter("road_2", 12)
    old.save(tmp_path / "a")
    read, swaps = sources._read_file, iter([new, old, None])

    def slow(path, name):
        found = read(path, name)
        if name == CONFIG and (version := next(swaps)) is not None:
            version.save(tmp_path / "a")
        return found

    monkeypatch.setattr(sources, "_read_file", slow)
    assert Adapter.load(tmp_path / "a") == old


def test_reader_tries_again_if_the_directory_went_away_meanwhile(tmp_path, monkeypatch):
    adapter().save(tmp_path / "a")
    read, attempts = sources._read_file, []

    def unlucky(path, name):
        attempts.append(name)
        if len(attempts) == 2:
            adapter("road_2").save(tmp_path / "a")
            raise FileNotFoundError(name)
        return read(path, name)

    monkeypatch.setattr(sources, "_read_file", unlucky)
    assert Adapter.load(tmp_path / "a") == adapter("road_2")
    assert attempts == [CONFIG, WEIGHTS] * 2


# ---- addresses ---------------------------------------------------------------------------------------------------


def test_fsspec_addresses_are_read():
    import fsspec

    memory = fsspec.filesystem("memory")
    config, weights = store.serialize(adapter())
    memory.pipe({f"/bucket/formal/{CONFIG}": config, f"/bucket/formal/{WEIGHTS}": weights})
    assert Adapter.load("memory://bucket/formal") == adapter()
    assert Adapter.load("memory://bucket/formal/") == adapter()
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://bucket/nothing", "memory://bucket/nothing: cannot be read"),
        ("memory://bucket/../secret", "chained addresses and '..' are refused"),
        ("simplecache::memory://bucket/formal", "chained addresses and '..' are refused"),
        ("nosuchprotocol://bucket/formal", "cannot be read"),
        ("owner/nosuchadapter", "no such directory, and the hub has no RoAd adapter of that name"),
        ("a--b/c", "no such directory, and the hub has no RoAd adapter of that name"),
        ("../up/and/away", "no such directory"),
        ("", "no such directory"),
    ],
)
def test_addresses_with_nothing_behind_are_refused(address, message):
    with pytest.raises(AdapterError, match=re.escape(message)):
        Adapter.load(address)
