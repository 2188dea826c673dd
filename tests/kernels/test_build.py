"""The C sources are compiled once, kept in the cache, and told apart by what the result depends on."""

from __future__ import annotations

import ctypes
import shutil
import threading
from pathlib import Path

import pytest

from roadkit.kernels.build import LIBRARIES, build, sources_of
from tests.kernels.compilers import stand_in

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
SOURCE = "int answer(void) { return 42; }\n"


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A C file that compiles in a moment, and an empty cache."""
    monkeypatch.setenv("ROADKIT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "answer.c"
    path.write_text(SOURCE)
    return path


def counting(folder: Path) -> tuple[str, Path]:
    """A compiler, and the file in which it counts its calls."""
    log = folder / "calls"
    return stand_in(folder, "counting-cc", f'echo x >> "{log}"\nexec cc "$@"'), log


def test_built_once_and_kept(source, tmp_path):
    cc, calls = counting(tmp_path)
    first, second = (build("answer", [source], cc) for _ in range(2))
    assert first is not None
    assert first == second
    assert ctypes.CDLL(str(first)).answer() == 42
    assert calls.read_text() == "x\n"
    assert [path.name for path in first.parent.iterdir()] == [first.name], "building left something behind"


def test_another_source_header_compiler_or_processor_is_another_file(source, tmp_path, monkeypatch):
    cc, _ = counting(tmp_path)
    built = {build("answer", [source], cc), build("answer", [source], "cc")}
    source.write_text(SOURCE.replace("42", "43"))
    built.add(build("answer", [source], cc))
    source.with_name("answer.h").write_text("// a header beside it\n")
    built.add(build("answer", [source], cc))
    monkeypatch.setattr("roadkit.kernels.build._processor", lambda: "another one")
    built.add(build("answer", [source], cc))
    assert len(built) == 5


def test_several_sources_become_one_library(source, tmp_path):
    other = tmp_path / "other.c"
    other.write_text("int answer(void);\nint twice(void) { return 2 * answer(); }\n")
    assert ctypes.CDLL(str(build("answer", [source, other], "cc"))).twice() == 84


def test_a_portable_library_needs_no_compiler_if_the_cache_has_it(source, tmp_path, monkeypatch):
    monkeypatch.setenv("ROADKIT_NATIVE", "portable")
    assert build("answer", [source], None) is None
    cc, calls = counting(tmp_path)
    built = build("answer", [source], cc)
    monkeypatch.setattr("roadkit.kernels.build._processor", lambda: "another one")
    assert build("answer", [source], None) == build("answer", [source], "/another/cc") == built
    assert calls.read_text() == "x\n" and ctypes.CDLL(str(built)).answer() == 42


def test_every_c_file_belongs_to_a_library():
    sources = {path for name in LIBRARIES for path in sources_of(name)}
    assert sources == set(sources_of("training")[0].parent.glob("*.c"))


def test_building_at_the_same_time_is_safe(source):
    results: list = []
    threads = [threading.Thread(target=lambda: results.append(build("answer", [source], "cc"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(set(results)) == 1
    assert ctypes.CDLL(str(results[0])).answer() == 42
