"""docs/results.md and docs/figures, rebuilt from the ledger alone.

    write(Ledger(Path("docs/data/experiments.jsonl")), Path("docs"))

The prose of the page stays; what stands between `<!-- table: glue -->` and `<!-- end -->` is replaced.
"""

from __future__ import annotations

import re
from pathlib import Path

from roadkit.errors import RecipeError
from roadkit.files import write_atomic

from ..ledger import Ledger
from .figures import draw
from .tables import tables

PAGE = "results.md"
_MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def write(ledger: Ledger, docs: Path) -> list[Path]:
    """Rebuild the page's tables and the figures. → the files written."""
    page = docs / PAGE
    if not page.is_file():
        raise RecipeError(f"{page} is missing: it holds the text around the tables; --docs names its folder")
    rows = ledger.rows()
    write_atomic(page, filled(page.read_text(encoding="utf-8"), tables(rows), origin=page))
    return [page, *draw(rows, docs / "figures")]


def filled(text: str, found: dict[str, str], *, origin: Path) -> str:
    """The page with every marked table replaced. Raises `RecipeError` for a mark that names no experiment."""
    for name in (match.group(2) for match in _MARKED.finditer(text)):
        if name not in found:
            raise RecipeError(f"{origin}: no experiment {name!r}; there are {', '.join(found)}")
    return _MARKED.sub(lambda match: f"{match.group(1)}{found[match.group(2)].rstrip()}\n{match.group(3)}", text)
