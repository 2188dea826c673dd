"""Training data as rows that know their place, so that a problem names file, row and column.

table = read_table("answers.jsonl.gz")       # .jsonl, .json, .csv, .tsv, .parquet, also gzipped; or a hub data set
table[0].text("prompt")                      # "Hello"
table[0].where                               # "answers.jsonl.gz, row 1"
train, held_out = split_table(table, fraction=0.1, seed=0)
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import RecipeError, nearest

Cells = dict[str, Any]  # a row as it was read: column → cell
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


@dataclass(frozen=True)
class Row:
    """One row and its place: `number` in the file or data set `origin`, counted from 1."""

    cells: Cells
    number: int
    origin: str

    @property
    def where(self) -> str:
        """The row's place, as messages begin with it."""
        return f"{self.origin}, row {self.number}"

    def where_is(self, column: str) -> str:
        """A cell's place, as messages begin with it."""
        return f"{self.where}, column {column!r}"

    def value(self, column: str) -> Any:
        """One cell. Raises `RecipeError` naming file, row and column, and the columns that there are."""
        if column not in self.cells:
            raise RecipeError(
                f"{self.where}: no column {column!r}{nearest(column, self.cells)} "
                f"(it has {', '.join(self.cells) or 'none'})"
            )
        return self.cells[column]

    def text(self, column: str) -> str:
        """One cell that must be text (a number is written out). Raises `RecipeError` as `value` does."""
        value = self.value(column)
        if isinstance(value, str):
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        kind = "empty" if value is None else f"a {type(value).__name__}"
        raise RecipeError(f"{self.where_is(column)}: must be text, is {kind}")


@dataclass(frozen=True)
class Table:
    """The rows of one file or data set, as they were read; as a sequence, each with its place.

    numbers    the rows' numbers in `origin`, counted from 1 (line numbers of JSONL)
    """

    rows: Sequence[Cells]
    numbers: Sequence[int]
    origin: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return Row(self.rows[index], self.numbers[index], self.origin)

    def __iter__(self) -> Iterator[Row]:
        return map(self.__getitem__, range(len(self)))

    @property
    def columns(self) -> list[str]:
        """The columns of the first row."""
        return list(self.rows[0])

    def take(self, indices: Sequence[int]) -> Table:
        """Some of the rows, with their numbers."""
        return Table([self.rows[i] for i in indices], [self.numbers[i] for i in indices], self.origin)

    def partition(self, column: str) -> dict[str, Table]:
        """The rows of every text that a column holds, in the order in which the texts occur first."""
        indices: dict[str, list[int]] = {}
        for i, row in enumerate(self):
            indices.setdefault(row.text(column), []).append(i)
        return {text: self.take(chosen) for text, chosen in indices.items()}


def read_table(source: str, *, split: str = "train", limit: int | None = None) -> Table:
    """Read a file, or `owner/name[:configuration]` from the hub (`split` is the hub data set's).

    Raises `RecipeError` for a missing, unreadable or empty source; a broken line is named by its number.
    """
    path = Path(source).expanduser()
    name = path.name.removesuffix(".gz")
    if path.is_file():
        suffix = Path(name).suffix.lower()
        if suffix not in SUFFIXES:
            raise RecipeError(f"{source}: files of kind {suffix or '(none)'!r} are not read; use {', '.join(SUFFIXES)}")
        try:
            pairs = list(_read_file(path, suffix))
        except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
            raise RecipeError(f"{source} cannot be read: {error}") from error
    elif Path(name).suffix.lower() in SUFFIXES or path.exists() or not _HUB_NAME.fullmatch(source):
        raise RecipeError(f"{source}: no such file{_similar_file(path)}")
    else:
        pairs = list(enumerate(_read_hub(source, split), start=1))
    if not pairs:
        raise RecipeError(f"{source} is empty: it has no rows to train on")
    numbers, rows = zip(*pairs[:limit], strict=True)
    return Table(rows, numbers, source)


def split_table(table: Table, *, fraction: float, seed: int) -> tuple[Table, Table]:
    """Hold out a share of the rows, at least one, the same for the same seed. → (train, held out), in file order."""
    count = max(1, round(len(table) * fraction))
    if count >= len(table):
        raise RecipeError(
            f"{table.origin} has {len(table)} rows: holding out {fraction:g} of them leaves none to train on"
        )
    held = set(random.Random(seed).sample(range(len(table)), count))
    return table.take([i for i in range(len(table)) if i not in held]), table.take(sorted(held))


def _read_file(path: Path, suffix: str) -> Iterator[tuple[int, Cells]]:
    if suffix == ".parquet":
        yield from _read_parquet(path)
        return
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as file:  # type: ignore[arg-type]
        if suffix in (".csv", ".tsv"):
            yield from _read_csv(path, file, "\t" if suffix == ".tsv" else ",")
        elif suffix == ".json":
            yield from _read_json(path, file.read())
        else:
            yield from _read_lines(path, file)


def _read_lines(path: Path, lines) -> Iterator[tuple[int, Cells]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, _object(_parsed(line, f"{path}, row {number}"), f"{path}, row {number}")


def _read_json(path: Path, text: str) -> Iterator[tuple[int, Cells]]:
    """A list of objects, or objects line by line."""
    if not text.lstrip().startswith("["):
        yield from _read_lines(path, text.splitlines())
        return
    for number, value in enumerate(_parsed(text, str(path)), start=1):
        yield number, _object(value, f"{path}, row {number}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{where} is not JSON: {error}") from error


def _object(value: Any, where: str) -> Cells:
    if not isinstance(value, dict):
        raise RecipeError(f"{where}: a row must be a JSON object, this is a {type(value).__name__}")
    return value


def _read_csv(path: Path, file, delimiter: str) -> Iterator[tuple[int, Cells]]:
    for number, row in enumerate(csv.DictReader(file, delimiter=delimiter), start=1):
        if None in row or None in row.values():
            cells = len(row) - 1 + len(row[None]) if None in row else sum(cell is not None for cell in row.values())
            names = [name for name in row if name is not None]
            raise RecipeError(f"{path}, row {number}: {cells} cells for the {len(names)} columns {', '.join(names)}")
        yield number, row


def _read_parquet(path: Path) -> Iterator[tuple[int, Cells]]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    yield from enumerate(rows, start=1)


def _read_hub(source: str, split: str) -> Iterator[Cells]:
    import datasets
    from datasets.exceptions import DatasetsError

    name, _, configuration = source.partition(":")
    try:
        found = datasets.load_dataset(name, configuration or None, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        raise RecipeError(
            f"{source}: no such file here, and the hub gave no data set (split {split!r}): {error}"
        ) from error
    yield from found  # type: ignore[misc]


def _similar_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" (there is no folder {folder})"
    return nearest(path.name, [file.name for file in folder.iterdir()])
