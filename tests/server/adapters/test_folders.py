"""Folders that somebody else writes while the server runs."""

import shutil
import time

import pytest

from roadkit import store
from roadkit.errors import ExpressionError
from roadkit.server.access.keys import LOCAL
from roadkit.server.adapters.catalog import Factor
from roadkit.server.adapters.folders import Folders
from tests.server.adapters.memory import CONTENTS, new_service
from tests.server.process import eventually


def test_a_folder_that_is_gone_is_no_adapter_any_more(tmp_path):
    store.save(store.parse(*CONTENTS[0]), tmp_path / "a")
    service = new_service()
    Folders(service.catalog, service.residents, [str(tmp_path)]).start()
    entry = service.catalog.find(LOCAL, "a")
    assert entry is not None
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(ExpressionError, match="no adapter 'a' any more"):
        service.residents.acquire([Factor(entry)])
    service.close()


def test_watched_folders_come_change_break_and_go(start, made, tmp_path):
    root = tmp_path / "watched"
    shutil.copytree(made(1), root / "one")
    server = start("--adapters", str(root), "--watch-seconds", "0.1")
    first = server.answer("one")
    shutil.copytree(made(2), root / "two")
    assert eventually(lambda: server.answer("two") != 404)
    second = server.answer("two")
    weights = root / "one" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])  # half a copy
    time.sleep(0.6)
    assert server.answer("one") == first
    shutil.copy(made(2) / weights.name, weights)
    assert eventually(lambda: server.answer("one") == second)
    shutil.rmtree(root / "one")
    assert eventually(lambda: server.answer("one") == 404)
    assert server.answer("two") == second
    assert server.stop() == 0
