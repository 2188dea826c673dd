"""`roadkit keys …`, and the words that made a key before."""

import json

import pytest
from typer.testing import CliRunner

from roadkit.cli import app
from roadkit.errors import RoadkitError
from roadkit.server.access.keys import Keyring


def keys(*words: object):
    return CliRunner().invoke(app, ["keys", *map(str, words)], catch_exceptions=False)


def test_a_key_is_made_listed_and_revoked(tmp_path):
    file = tmp_path / "keys.json"
    made = keys("add", "ci", "--tenant", "acme", "--concurrency", 2, "--keys", file)
    keys("add", "root", "--admin", "--keys", file)
    text = made.stdout.strip()
    caller = Keyring.load(file).caller(f"Bearer {text}")
    assert (caller.name, caller.tenant, caller.admin, caller.quota.concurrency) == ("ci", "acme", False, 2)
    assert text not in file.read_text() and file.stat().st_mode & 0o777 == 0o600
    listed = json.loads(keys("list", "--keys", file, "--json").stdout)["keys"]
    assert [(row["name"], row["tenant"], row["admin"]) for row in listed] == [
        ("ci", "acme", False),
        ("root", "default", True),
    ]
    assert "sha256" not in listed[0]
    assert "concurrency 2" in keys("list", "--keys", file).stdout
    keys("revoke", "ci", "--keys", file)
    assert [key.name for key in Keyring.load(file).keys] == ["root"]


def test_what_cannot_be_made_or_revoked_changes_nothing(tmp_path):
    file = tmp_path / "keys.json"
    with pytest.raises(RoadkitError, match="there is no key 'ci'; there are none"):
        keys("revoke", "ci", "--keys", file)
    assert not file.exists()
    keys("add", "ci", "--keys", file)
    before = file.read_text()
    with pytest.raises(RoadkitError, match="two keys are called 'ci'"):
        keys("add", "ci", "--keys", file)
    with pytest.raises(RoadkitError, match="there is no key 'cii'; did you mean 'ci'"):
        keys("revoke", "cii", "--keys", file)
    assert file.read_text() == before


def test_zero_is_no_limit_and_what_a_key_cannot_be_is_said_in_words(tmp_path):
    file = tmp_path / "keys.json"
    keys("add", "ci", "--concurrency", 0, "--requests-per-minute", 0, "--keys", file)
    assert Keyring.load(file).keys[0].quota.concurrency is None
    for words, message in (
        (["add", "x", "--concurrency", -1], "concurrency: input should be greater than 0, got '-1'"),
        (["add", "x", "--tenant", "a b"], "tenant: .*, got 'a b'"),
        (["add", ""], "name: "),
    ):
        with pytest.raises(RoadkitError, match=message):
            keys(*words, "--keys", file)
    assert [key.name for key in Keyring.load(file).keys] == ["ci"]


@pytest.mark.parametrize(
    "words",
    [
        ["serve", "smollm2", "--make-key", "ci"],
        ["serve", "--make-key=ci"],
        ["-v", "serve", "--port", "9", "--make-key", "ci", "smollm2"],
    ],
)
def test_serve_still_makes_keys_and_says_where_they_are_made_now(tmp_path, words):
    file = tmp_path / "keys.json"
    done = CliRunner().invoke(app, [*words, "--tenant", "acme", "--admin", "--keys", str(file)], catch_exceptions=False)
    assert done.exit_code == 0 and done.stdout.startswith("rk-")
    assert f"roadkit keys add ci --tenant acme --admin --keys {file}" in done.stderr
    (key,) = Keyring.load(file).keys
    assert (key.name, key.tenant, key.admin) == ("ci", "acme", True)
