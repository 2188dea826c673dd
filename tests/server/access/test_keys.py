"""Keys and their file."""

import asyncio
import json
import os

import pytest
from typer.testing import CliRunner

from roadkit.cli import app
from roadkit.errors import RoadkitError
from roadkit.server.access.keys import Key, Keyring, new_key


def test_keys_are_kept_as_digests(tmp_path):
    text, key = new_key("ci", tenant="acme")
    Keyring((key,)).save(tmp_path / "keys.json")
    assert text not in (tmp_path / "keys.json").read_text() and len(text) > 40
    assert (tmp_path / "keys.json").stat().st_mode & 0o077 == 0
    assert Keyring.load(tmp_path / "keys.json").caller(f"Bearer {text}") == key


def test_a_key_file_is_never_readable_by_others(tmp_path, monkeypatch):
    modes, replace = [], os.replace

    def spy(old, new):
        modes.append(os.stat(old).st_mode & 0o777)
        replace(old, new)

    monkeypatch.setattr(os, "replace", spy)
    Keyring().save(tmp_path / "keys.json")
    assert modes == [0o600]
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600


def test_a_broken_key_file_is_not_shown(tmp_path):
    (tmp_path / "keys.json").write_text('{"keys": [{"name": "x", "sha256": "topsecret"}]}')
    with pytest.raises(RoadkitError) as caught:
        Keyring.load(tmp_path / "keys.json")
    assert "topsecret" not in str(caught.value)


def test_keys_are_read_again_when_their_file_changes(local, tmp_path):
    path = tmp_path / "keys.json"
    (text, first), (other, second) = new_key("one", tenant="acme"), new_key("two", tenant="zeta")
    Keyring((first,)).save(path)

    async def run():
        async with local(keyring=Keyring.load(path), watch_seconds=0.02) as (service, http):

            async def status(key):
                answer = await http.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
                return answer.status_code

            async def becomes(key, wanted):
                for _ in range(200):
                    if await status(key) == wanted:
                        return True
                    await asyncio.sleep(0.02)

            assert (await status(text), await status(other)) == (200, 401)
            Keyring((first, second)).save(path)
            assert await becomes(other, 200)
            Keyring((second,)).save(path)
            assert await becomes(text, 401) and await status(other) == 200
            for between in (lambda: path.write_text("{"), path.unlink):  # in the middle of an edit
                between()
                await asyncio.sleep(0.2)
                assert await status(other) == 200
            Keyring().save(path)  # nobody has a key any more: that opens no door
            assert await becomes(other, 401)
            assert (await http.get("/v1/models")).status_code == 401

    asyncio.run(run())


def test_a_server_with_a_key_file_needs_a_key_in_it(tmp_path):
    Keyring().save(tmp_path / "keys.json")
    done = CliRunner().invoke(app, ["serve", "--keys", str(tmp_path / "keys.json")])
    assert isinstance(done.exception, RoadkitError) and "holds no key; make one" in str(done.exception)


def test_key_names_are_unique():
    key = Key(name="a", sha256="0" * 64, tenant="t")
    with pytest.raises(RoadkitError, match="two keys"):
        Keyring((key, key))
    assert json.loads(key.model_dump_json())["tenant"] == "t"
