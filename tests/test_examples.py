"""Every file of examples/ runs as it is, in a folder with adapters such as `make demo` trains."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))


@pytest.mark.model
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example, tmp_path, monkeypatch, random_adapter, capsys):
    from roadkit import models

    model = models.load_causal("smollm2")
    for seed, name in enumerate(("formal", "json", "pirate")):
        (random_adapter(model, seed, group_size=64) ** 0.05).save(tmp_path / "adapters" / name)
    del model
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(example)])
    runpy.run_path(str(example), run_name="__main__")  # the examples assert what they claim
    assert len(capsys.readouterr().out.splitlines()) >= 4


def test_there_are_the_four_of_the_documentation():
    assert {path.stem for path in EXAMPLES} == {
        "intervene_and_compose", "strength_dial", "subtract_adapter", "who_is_nearest",
    }  # fmt: skip
