"""The figures that a benchmark printed, as tables. A median and its extremes share a cell.

benchmark_tables({"seconds": {"ours": {"median": 1, "min": 0.9, "max": 1.2}}, "ratio": 2.0})
# → [(["seconds", "median (least to most)"], [["ours", "1 (0.9 to 1.2)"]]), (["figure", "value"], [["ratio", "2"]])]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Table = tuple[list[str], list[list[str]]]  # header, lines
LEFT_OUT = ("machine", "targets", "reached")  # the title names the machine, and targets are not measured


def benchmark_tables(metrics: Mapping[str, Any], name: str = "") -> list[Table]:
    """A table for every mapping of rows, however deep it lies, and one for the single figures beside them."""
    found: list[Table] = []
    single: list[list[str]] = []
    for key, value in metrics.items():
        if key in LEFT_OUT:
            continue
        path = f"{name}, {key}" if name else key
        if not isinstance(value, Mapping):
            single.append([key.replace("_", " "), _short(value)])
        elif all(isinstance(row, Mapping) for row in value.values()) and not _nested(value):
            found.append(_rows(path.replace("_", " "), value))
        else:
            found += benchmark_tables(value, path)
    return [*found, ([name.replace("_", " ") or "figure", "value"], single)] if single else found


def _nested(rows: Mapping[str, Mapping[str, Any]]) -> bool:
    return any(isinstance(cell, Mapping) for row in rows.values() for cell in row.values())


def _rows(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    cells = {name: dict(_cells(row)) for name, row in rows.items()}
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    return [title, *columns], [[name, *(row.get(column, "–") for column in columns)] for name, row in cells.items()]


def _cells(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(Column, cell) of a row. x with x_min and x_max makes one cell, and so does median with min and max."""
    for key, value in row.items():
        if key in LEFT_OUT or key in ("min", "max") or key.endswith(("_min", "_max")):
            continue
        low, high = ("min", "max") if key == "median" else (f"{key}_min", f"{key}_max")
        column = key.replace("_", " ")
        if low in row and high in row:
            yield f"{column} (least to most)", f"{_short(value)} ({_short(row[low])} to {_short(row[high])})"
        else:
            yield column, _short(value)


def _short(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_short, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
