"""The C kernels are loaded, or the log says why plain torch serves instead."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from roadkit.kernels import native, rotate_rows
from tests.kernels.compilers import stand_in

needs_compiler = pytest.mark.skipif(native.load() is None, reason="no C compiler here")


@needs_compiler
@pytest.mark.parametrize("name", ["inference", "training"])
def test_portable_kernels_are_loaded_with_no_compiler_in_sight(name, tmp_path, monkeypatch):
    """As the image that deploy/Dockerfile builds does."""
    monkeypatch.setenv("ROADKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ROADKIT_NATIVE", "portable")
    assert native._load.__wrapped__(name) is not None
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert native._load.__wrapped__(name) is not None


def test_no_compiler_is_a_logged_fallback(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert native._load.__wrapped__("inference") is None
    assert "no C compiler found" in caplog.text


def test_failing_compiler_is_a_logged_fallback(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ROADKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", stand_in(tmp_path, "broken-cc", 'echo "cc: this machine is out of luck" >&2; exit 1'))
    assert native._load.__wrapped__("inference") is None
    assert "the C kernels of inference could not be built" in caplog.text
    assert "out of luck" in caplog.text
    assert not list((tmp_path / "native").iterdir())


def test_unwritable_cache_is_a_logged_fallback(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROADKIT_CACHE", str(tmp_path / "file"))
    assert native._load.__wrapped__("inference") is None
    assert "could not be built" in caplog.text


@needs_compiler
def test_damaged_library_is_a_logged_fallback(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ROADKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", stand_in(tmp_path, "odd-cc", 'while [ "$1" != -o ]; do shift; done; echo junk > "$2"'))
    assert native._load.__wrapped__("inference") is None
    assert "could not be built" in caplog.text


@pytest.mark.parametrize("load", [native.load, native.load_training])
def test_switched_off_by_the_environment(load, monkeypatch):
    monkeypatch.setenv("ROADKIT_NATIVE", "0")
    assert load() is None


def test_everything_falls_back_to_torch_in_a_process_without_compiler(tmp_path):
    script = (
        "import torch, roadkit\n"
        "from roadkit.kernels.rows import backend_for, rotate_rows_loop\n"
        "a, b, h = torch.randn(3, 3, 8).unbind(0)\n"
        "rows = torch.tensor([2, 0, 1])\n"
        "z = roadkit.rotate_rows(h, rows, a, b, 4)\n"
        "torch.testing.assert_close(z, rotate_rows_loop(h, rows, a, b.unsqueeze(0), (4,)))\n"
        "print(backend_for('cpu'))\n"
    )
    paths = os.pathsep.join([str(Path(native.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "PATH": str(tmp_path), "ROADKIT_CACHE": str(tmp_path)}
    environment.pop("CC", None)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "torch\n", done.stderr
    assert "no C compiler found" in done.stderr


@needs_compiler
def test_threads_are_torchs_own():
    """One OpenMP runtime in the process: two would fight over the cores."""
    rotate_rows(torch.randn(4, 8), torch.zeros(4, dtype=torch.int64), torch.ones(1, 8), torch.zeros(1, 8), 4)
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line}
    ours = {os.path.realpath(path) for path in mapped if ".libs/" not in path}  # wheels that bring a private one
    assert len(ours) == 1
