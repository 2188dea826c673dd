"""docs/results.md and docs/figures, rebuilt from the ledger alone.

    write_results(Ledger(Path("docs/data/experiments.jsonl")), Path("docs"))

Only what is between `<!-- table: glue -->` and `<!-- end -->` is replaced; the rest of the page is written by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

from roadkit.errors import RecipeError
from roadkit.files import write_atomic

from ..ledger import Ledger
from .figures import draw_figures
from .tables import result_tables

PAGE = "results.md"
_MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def write_results(ledger: Ledger, docs: Path) -> list[Path]:
    """Rebuild the page's tables and the figures; → the files written. Raises `RecipeError` if the page is missing."""
    page = docs / PAGE
    if not page.is_file():
        raise RecipeError(f"{page} is missing: it holds the text around the tables; --docs names its folder")
    rows = ledger.rows()
    write_atomic(page, with_tables(page.read_text(encoding="utf-8"), result_tables(rows), origin=page))
    return [page, *draw_figures(rows, docs / "figures")]


def with_tables(text: str, tables: dict[str, str], *, origin: Path) -> str:
    """The page with every marked table replaced. Raises `RecipeError` for a mark that names no experiment."""
    for name in (match.group(2) for match in _MARKED.finditer(text)):
        if name not in tables:
            raise RecipeError(f"{origin}: no experiment {name!r}; there are {', '.join(tables)}")
    return _MARKED.sub(lambda match: f"{match.group(1)}{tables[match.group(2)].rstrip()}\n{match.group(3)}", text)
