"""Where adapters come from: the bytes of an adapter's two files in a local folder, on the hub, or behind an address.

    config, weights = read("adapters/formal", store.FILES)       # also "owner/name", or "s3://bucket/formal"

Nothing is interpreted here; `roadkit.store` validates what was read. A folder is not left: symbolic links out of it are
refused, and so are addresses that climb.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import AdapterError

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def read(source: str | os.PathLike, files: tuple[str, str]) -> tuple[bytes, bytes]:
    """The bytes of an adapter's two files, each read once.

    source  a local folder, a hub id (`owner/name`), or an fsspec address of a folder
    files   the names of the two

    Raises `AdapterError` if there is no such source, or one of the files is missing or cannot be read.
    """
    path, text = Path(source), os.fspath(source)
    if text and path.is_dir():
        return _read_directory(path, files)
    if "://" in text:
        return _read_remote(text, files)
    if text and path.exists():
        raise AdapterError(f"{text}: an adapter is a directory with {files[0]} and {files[1]}, this is a file")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text):
        return _read_hub(text, files)
    raise AdapterError(f"{text!r}: no such directory")


def _read_directory(path: Path, files: tuple[str, str]) -> tuple[bytes, bytes]:
    """Both files of one version: if the directory is replaced between the two reads, they are read again."""
    try:
        while True:
            before = os.stat(path).st_ino
            try:
                contents = _read_file(path, files[0]), _read_file(path, files[1])
            except (AdapterError, OSError):
                if os.stat(path).st_ino == before:
                    raise
            else:
                if os.stat(path).st_ino == before:
                    return contents
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read: {error}") from error


def _read_file(path: Path, name: str) -> bytes:
    file = path / name
    if file.is_symlink() and not file.resolve().is_relative_to(_link_root(path)):
        raise AdapterError(f"{path}: {name} is a symbolic link that leaves the directory")
    if not file.exists():
        pickles = sorted(item.name for item in path.iterdir() if item.suffix in _PICKLES)
        pickle = f"; {pickles[0]} is a pickle, which is never loaded: save it as safetensors" if pickles else ""
        raise AdapterError(f"{path}: {name} is missing{pickle}")
    if not file.is_file():
        raise AdapterError(f"{path}: {name} is not a regular file")
    return file.read_bytes()


def _link_root(path: Path) -> Path:
    """How far a link may lead: within the directory, or within one model of a Hugging Face cache."""
    path = path.resolve()
    for parent in path.parents:
        if parent.name.startswith("models--") and (parent / "blobs").is_dir():
            return parent
    return path


def _read_hub(name: str, files: tuple[str, str]) -> tuple[bytes, bytes]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        config, weights = (Path(hf_hub_download(name, file)).read_bytes() for file in files)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise AdapterError(
            f"{name}: no such directory, and the hub has no RoAd adapter of that name: {error}"
        ) from error
    return config, weights


def _read_remote(address: str, files: tuple[str, str]) -> tuple[bytes, bytes]:
    import fsspec

    scheme, _, rest = address.partition("://")
    if "::" in address or ".." in rest.split("/"):
        raise AdapterError(f"{address}: chained addresses and '..' are refused")
    try:
        contents = []
        for file in files:
            with fsspec.open(f"{scheme}://{rest.rstrip('/')}/{file}", "rb") as opened:
                contents.append(opened.read())  # type: ignore[union-attr]  # a list for several addresses only
        return contents[0], contents[1]
    except (OSError, ValueError, ImportError) as error:
        raise AdapterError(f"{address}: cannot be read: {error}") from error
