from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from roadkit.kernels import native
from roadkit.kernels import rows as kernels

needs_compiler = pytest.mark.skipif(native.load() is None, reason="no C compiler here")
SOURCE = "int answer(void) { return 42; }\n"


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A C file that compiles in a moment, and an empty cache."""
    monkeypatch.setenv("ROADKIT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "answer.c"
    path.write_text(SOURCE)
    return path


def compiler(folder: Path, name: str, body: str) -> str:
    """A stand-in for the C compiler."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def counting(folder: Path) -> tuple[str, Path]:
    log = folder / "calls"
    return compiler(folder, "counting-cc", f'echo x >> "{log}"\nexec cc "$@"'), log


# ---- building ---------------------------------------------------------------------------------------------------


@needs_compiler
def test_built_once_and_kept(source, tmp_path):
    cc, calls = counting(tmp_path)
    first, second = native._build(cc, source), native._build(cc, source)
    assert first == second
    assert ctypes.CDLL(str(first)).answer() == 42
    assert calls.read_text() == "x\n"
    assert [path.name for path in first.parent.iterdir()] == [first.name], "building left something behind"


@needs_compiler
def test_another_source_compiler_or_processor_is_another_file(source, tmp_path, monkeypatch):
    cc, _ = counting(tmp_path)
    built = {native._build(cc, source), native._build("cc", source)}
    source.write_text(SOURCE.replace("42", "43"))
    built.add(native._build(cc, source))
    monkeypatch.setattr(native, "_processor", lambda: "another one")
    built.add(native._build(cc, source))
    assert len(built) == 4


@needs_compiler
def test_a_portable_library_needs_no_compiler_where_the_cache_has_it(source, tmp_path, monkeypatch):
    monkeypatch.setenv("ROADKIT_NATIVE", "portable")
    assert native._build(None, source) is None
    cc, calls = counting(tmp_path)
    built = native._build(cc, source)
    monkeypatch.setattr(native, "_processor", lambda: "another one")
    assert native._build(None, source) == native._build("/another/cc", source) == built
    assert calls.read_text() == "x\n" and ctypes.CDLL(str(built)).answer() == 42


@needs_compiler
@pytest.mark.parametrize("name", ["inference.c", "training.c"])
def test_the_kernels_can_be_built_for_other_processors(name, tmp_path, monkeypatch):
    """As deploy/Dockerfile does; then loaded with no compiler in sight."""
    monkeypatch.setenv("ROADKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ROADKIT_NATIVE", "portable")
    assert native._load.__wrapped__(name) is not None
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert native._load.__wrapped__(name) is not None


@needs_compiler
def test_building_at_the_same_time_is_safe(source):
    results: list = []
    threads = [threading.Thread(target=lambda: results.append(native._build("cc", source))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(set(results)) == 1
    assert ctypes.CDLL(str(results[0])).answer() == 42


# ---- where it cannot be built -----------------------------------------------------------------------------------


def test_no_compiler_is_a_logged_fallback(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert native._load.__wrapped__("inference.c") is None
    assert "no C compiler found" in caplog.text


def test_failing_compiler_is_a_logged_fallback(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ROADKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", compiler(tmp_path, "broken-cc", 'echo "cc: this machine is out of luck" >&2; exit 1'))
    assert native._load.__wrapped__("inference.c") is None
    assert "inference.c could not be built" in caplog.text
    assert "out of luck" in caplog.text
    assert not list((tmp_path / "native").iterdir())


def test_unwritable_cache_is_a_logged_fallback(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROADKIT_CACHE", str(tmp_path / "file"))
    assert native._load.__wrapped__("inference.c") is None
    assert "could not be built" in caplog.text


@needs_compiler
def test_damaged_library_is_a_logged_fallback(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ROADKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", compiler(tmp_path, "odd-cc", 'while [ "$1" != -o ]; do shift; done; echo junk > "$2"'))
    assert native._load.__wrapped__("inference.c") is None
    assert "could not be built" in caplog.text


@pytest.mark.parametrize("load", [native.load, native.load_training])
def test_switched_off_by_the_environment(load, monkeypatch):
    monkeypatch.setenv("ROADKIT_NATIVE", "0")
    assert load() is None


def test_everything_falls_back_to_torch_in_a_process_without_compiler(tmp_path):
    script = (
        "import torch, roadkit\n"
        "from roadkit.kernels import rows as kernels\n"
        "a, b, h = torch.randn(3, 3, 8).unbind(0)\n"
        "rows = torch.tensor([2, 0, 1])\n"
        "z = roadkit.rotate_rows(h, rows, a, b, 4)\n"
        "torch.testing.assert_close(z, kernels.rotate_rows_loop(h, rows, a, b.unsqueeze(0), (4,)))\n"
        "print(kernels.backend('cpu'))\n"
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
    kernels.rotate_rows(torch.randn(4, 8), torch.zeros(4, dtype=torch.int64), torch.ones(1, 8), torch.zeros(1, 8), 4)
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line}
    ours = {os.path.realpath(path) for path in mapped if ".libs/" not in path}  # wheels that bring a private one
    assert len(ours) == 1
