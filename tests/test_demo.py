"""The demonstration, without its training."""

from pathlib import Path

import pytest

from roadkit import demo


def test_the_demo_asks_no_hub_for_adapters_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "load", lambda path: pytest.fail(f"{path} was looked for beyond this machine"))
    assert not demo._usable(Path("adapters/json"))
