"""Where roadkit keeps files, and how it writes them: under a temporary name, flushed, then renamed.

write_atomic(path, data)                    # one file: the old or the new content, never half of either
with replaced_directory(path) as folder:    # a whole directory, the same way
    ...
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_dir() -> Path:
    """`$ROADKIT_CACHE`, or `roadkit` in `$XDG_CACHE_HOME` (default `~/.cache`). Safe to delete at any time."""
    root = os.environ.get("ROADKIT_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "roadkit"


def write_atomic(path: str | os.PathLike, data: bytes | str, *, mode: int = 0o644) -> None:
    """Write one file. A reader or a crash meets the old content or the new, never a part, and always with `mode`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write a value as indented JSON, like `write_atomic`."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def replaced_directory(path: str | os.PathLike, *, stale: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty temporary directory that takes the place of `path` when the block ends without an error.

    An old directory at `path` is deleted, but only if it is an older version of the same: it holds nothing that the new
    one lacks, apart from the files named in `stale`. Raises `FileExistsError` if it holds more.
    """
    path = Path(os.path.realpath(path))  # a link stays a link, and what it names is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as opened:
                    os.fsync(opened.fileno())
        _sync_directory(temporary)
        if not _move(temporary, path):
            _check_same_kind(path, temporary, stale)
            if not _exchange(temporary, path):  # two renames, with no directory for a moment
                old = temporary.with_suffix(".old")
                os.rename(path, old)
                os.rename(temporary, path)
                temporary = old
        _sync_directory(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move(source: Path, target: Path) -> bool:
    """Rename a directory. False if the target is a directory that is not empty."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _check_same_kind(old: Path, new: Path, stale: Collection[str]) -> None:
    made = {item.name for item in new.iterdir()}
    others = [item for item in old.iterdir() if item.name not in made and (item.is_dir() or item.name not in stale)]
    if others:
        found = ", ".join(sorted(item.name + "/" * item.is_dir() for item in others)[:3])
        raise FileExistsError(f"{old} holds other things ({found}), which would be deleted; name a new folder")


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step, with Linux's renameat2. False if the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_fdcwd, rename_exchange = -100, 2
    return renameat2 is not None and (
        renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0
    )


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
