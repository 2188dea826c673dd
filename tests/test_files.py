from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from roadkit import files
from roadkit.files import cache_dir, replaced_directory, write_atomic, write_json

SOURCE = str(Path(files.__file__).parents[1])


def fill(folder: Path, content: str, count: int = 3) -> None:
    for i in range(count):
        (folder / f"part{i}").write_text(content)


def contents(folder: Path) -> set[str]:
    return {file.read_text() for file in folder.iterdir()}


@pytest.fixture(params=["exchange", "two renames"])
def system(request, monkeypatch):
    """Kernels with and without the system call that swaps two names."""
    if request.param == "two renames":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)


# ---- one file ---------------------------------------------------------------------------------------------------


def test_file_is_written_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    write_atomic(path, "späte")
    assert path.read_text(encoding="utf-8") == "späte"
    assert os.listdir(path.parent) == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_json_reads_back(tmp_path):
    value = {"θ": [1, 2.5, None], "name": "é"}
    write_json(tmp_path / "file.json", value)
    assert json.loads((tmp_path / "file.json").read_text()) == value
    assert "θ" in (tmp_path / "file.json").read_text()


# ---- a directory ------------------------------------------------------------------------------------------------


def test_directory_is_new_or_replaced(tmp_path, system):
    path = tmp_path / "deep" / "folder"
    for content in ("one", "two", "three"):
        with replaced_directory(path) as folder:
            fill(folder, content)
        assert contents(path) == {content}
        assert os.listdir(path.parent) == ["folder"]
    assert path.stat().st_mode & 0o777 == 0o755


def test_error_inside_leaves_the_old_directory(tmp_path, system):
    with replaced_directory(tmp_path / "folder") as folder:
        fill(folder, "old")
    with pytest.raises(KeyError), replaced_directory(tmp_path / "folder") as folder:
        fill(folder, "new")
        raise KeyError
    assert contents(tmp_path / "folder") == {"old"}
    assert os.listdir(tmp_path) == ["folder"]


def test_old_files_do_not_stay(tmp_path, system):
    with replaced_directory(tmp_path / "folder") as folder:
        fill(folder, "old", 5)
    with pytest.raises(FileExistsError, match="part2, part3, part4"):
        with replaced_directory(tmp_path / "folder", stale=["part9"]) as folder:
            fill(folder, "new", 2)
    assert len(os.listdir(tmp_path / "folder")) == 5
    with replaced_directory(tmp_path / "folder", stale=["part2", "part3", "part4"]) as folder:
        fill(folder, "new", 2)
    assert sorted(os.listdir(tmp_path / "folder")) == ["part0", "part1"]


def test_what_is_not_ours_is_not_deleted(tmp_path, system):
    project = tmp_path / "project"
    (project / "src").mkdir(parents=True)
    (project / "thesis.tex").write_text("years of work")
    with pytest.raises(
        FileExistsError, match=r"project holds other things \(src/, thesis.tex\), which would be deleted"
    ):
        with replaced_directory(project) as folder:
            fill(folder, "new")
    (project / "src").rmdir()
    with pytest.raises(FileExistsError, match=r"holds other things \(thesis.tex\), which would be deleted; name a new"):
        with replaced_directory(project) as folder:
            fill(folder, "new")
    assert (project / "thesis.tex").read_text() == "years of work"
    assert os.listdir(tmp_path) == ["project"]


def test_checkpoints_inside_are_not_deleted(tmp_path):
    fill(tmp_path, "trained")
    (tmp_path / "checkpoint-100").mkdir()
    with pytest.raises(FileExistsError, match="checkpoint-100/"), replaced_directory(tmp_path) as folder:
        fill(folder, "new")
    assert (tmp_path / "checkpoint-100").is_dir()


def test_empty_directory_is_filled(tmp_path):
    (tmp_path / "folder").mkdir()
    with replaced_directory(tmp_path / "folder") as folder:
        fill(folder, "new")
    assert contents(tmp_path / "folder") == {"new"}


def test_link_to_a_directory_stays_a_link(tmp_path, system):
    (tmp_path / "v1").mkdir()
    fill(tmp_path / "v1", "old")
    (tmp_path / "current").symlink_to("v1")
    with replaced_directory(tmp_path / "current") as folder:
        fill(folder, "new")
    assert (tmp_path / "current").is_symlink()
    assert contents(tmp_path / "v1") == {"new"}
    assert sorted(os.listdir(tmp_path)) == ["current", "v1"]


def test_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="file"), replaced_directory(tmp_path / "file") as folder:
        fill(folder, "new")
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_writers_at_the_same_time_leave_one_of_theirs(tmp_path):
    errors = []

    def write(name: str) -> None:
        try:
            for _ in range(15):
                with replaced_directory(tmp_path / "folder") as folder:
                    fill(folder, name)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(contents(tmp_path / "folder")) == 1
    assert os.listdir(tmp_path) == ["folder"]


WRITER = """
import itertools, sys
from pathlib import Path
from roadkit.files import replaced_directory, write_atomic

root = Path(sys.argv[1])
print("ready", flush=True)
for i in itertools.count():
    with replaced_directory(root / "folder") as folder:
        for part in range(20):
            (folder / f"part{part}").write_text(str(i) * 2000)
    write_atomic(root / "file", str(i) * 20000)
"""


def test_killed_writers_leave_the_old_or_the_new(tmp_path):
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    seen = set()
    for delay in (0.003, 0.01, 0.02, 0.03, 0.05, 0.08, 0.3, 1.0, 3.0):
        if delay > 0.1 and seen:
            break  # the long ones are for a machine so busy that no writer got anywhere
        writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], env=environment, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(delay)
        writer.kill()
        writer.communicate()
        if seen or (tmp_path / "folder").exists():
            parts = contents(tmp_path / "folder")
            assert len(parts) == 1, "files of two versions side by side"
            assert len(os.listdir(tmp_path / "folder")) == 20
            seen |= parts
        if (tmp_path / "file").exists():
            assert len(set((tmp_path / "file").read_text())) in range(1, 4)
            assert len((tmp_path / "file").read_text()) % 20000 == 0
    assert seen, "no writer lived long enough to show anything"


# ---- the cache --------------------------------------------------------------------------------------------------


def test_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("ROADKIT_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert cache_dir() == tmp_path / "a"
    monkeypatch.delenv("ROADKIT_CACHE")
    assert cache_dir() == tmp_path / "b" / "roadkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == tmp_path / "c" / ".cache" / "roadkit"
