"""The documentation names what there is: every public name, every module that moved, every page in the navigation."""

from __future__ import annotations

import importlib
import re
import runpy
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
TABLES = (DOCS / "moved.md").read_text()
MOVED = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \|$", TABLES, flags=re.MULTILINE)
SPLIT = re.findall(r"^\| `([\w.]+)` \| [^|]+ \| `([\w.]+)` \|$", TABLES, flags=re.MULTILINE)


def is_module(name: str) -> bool:
    path = (ROOT if name.startswith("paper") else ROOT / "src").joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@pytest.mark.parametrize("package", ["roadkit", "roadkit.train", "roadkit.intervene"])
def test_api_pages_show_every_public_name(package):
    page = (DOCS / "api" / f"{package.rpartition('.')[2]}.md").read_text()
    shown = set(re.findall(rf"^::: {package}\.(\w+)$", page, flags=re.MULTILINE))
    assert set(importlib.import_module(package).__all__) <= shown


def test_moved_modules_are_where_the_page_says():
    assert len(MOVED) > 90
    assert not [name for _, now in MOVED for name in re.findall(r"`([\w.]+)`", now) if not is_module(name)]
    assert all(is_module(kept) and is_module(new) for kept, new in SPLIT)


def test_moved_modules_are_gone_from_where_they_were():
    rooms = {"kernels", "train.data", "server.adapters", "server.backends", "engine.bank"}  # named as a module was
    assert {before for before, _ in MOVED if is_module(before)} == {f"roadkit.{room}" for room in rooms}


def test_the_changelog_and_the_site_lead_to_the_moved_modules():
    assert "docs/moved.md" in (ROOT / "CHANGELOG.md").read_text()
    assert "moved.md" in str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])


def test_the_site_fetches_nothing():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert site["theme"]["font"] is False
    assert not {"repo_url", "extra_javascript", "extra_css"} & set(site)


def test_lists_in_docstrings_become_definition_lists():
    pytest.importorskip("griffe", reason="the documentation's packages are not installed: `make docs`")
    convert = runpy.run_path(str(DOCS / "docstrings.py"))["definition_lists"]
    docstring = (
        "One batch.\n\nslots      adapters at once\nlong_names rows,\n           by default one\n\nRaises nothing."
    )
    assert convert(docstring).splitlines() == [
        "One batch.", "", "",
        "`slots`", ":   adapters at once", "",
        "`long_names`", ":   rows,", "    by default one", "",
        "", "Raises nothing.",
    ]  # fmt: skip
    plain = "Prose over\ntwo lines.\n\n    call(x)    # an example\n\nf(x)  # another"
    assert convert(plain) == plain
