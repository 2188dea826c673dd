"""Only marked tables of a page are replaced, and the committed page agrees with the committed ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from paper.ledger import Ledger
from paper.report.results import with_tables, write_results
from roadkit.errors import RecipeError
from tests.paper.report.conftest import append_run

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_only_marked_tables_are_replaced(tmp_path):
    page = "before\n<!-- table: glue -->\nold\n<!-- end -->\nafter\n"
    assert with_tables(page, {"glue": "new"}, origin=tmp_path) == page.replace("old", "new")
    with pytest.raises(RecipeError, match="no experiment 'gleu'; there are glue"):
        with_tables(page.replace("glue", "gleu"), {"glue": "new"}, origin=tmp_path)


def test_the_committed_page_and_figures_agree_with_the_committed_ledger(tmp_path):
    ledger = Ledger(DOCS / "data" / "experiments.jsonl")
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    (tmp_path / "results.md").write_text(page, encoding="utf-8")
    written = write_results(ledger, tmp_path)
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == page
    assert len(ledger.rows()) == ledger.path.read_bytes().count(b"\n"), "a run stands there twice"
    for path in written:
        if path.suffix == ".csv":
            assert path.read_text() == (DOCS / "figures" / path.name).read_text()


def test_a_missing_page_is_named(ledger, tmp_path):
    append_run(ledger, "road_1", 1e-3, 0, 0.7, 0.5)
    with pytest.raises(RecipeError, match=r"results\.md is missing"):
        write_results(ledger, tmp_path)
