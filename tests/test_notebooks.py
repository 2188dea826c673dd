"""The notebooks' cells run in order, in a folder without adapters; what they claim they assert themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def cells(name: str) -> list[dict]:
    return json.loads((FOLDER / name).read_text())["cells"]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "name",
    [pytest.param("tour.ipynb", marks=[pytest.mark.model, pytest.mark.slow]), "algebra.ipynb"],
)
def test_notebook_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for i, cell in enumerate(cells(name)):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}, cell {i}", "exec"), namespace)
    assert len(capsys.readouterr().out.splitlines()) > 8


def test_notebooks_are_kept_without_outputs():
    assert {path.name for path in FOLDER.glob("*.ipynb")} == {"algebra.ipynb", "tour.ipynb"}
    for path in FOLDER.glob("*.ipynb"):
        code = [cell for cell in cells(path.name) if cell["cell_type"] == "code"]
        assert len(code) >= 8
        assert not any(cell["outputs"] or cell["execution_count"] for cell in code), path.name
