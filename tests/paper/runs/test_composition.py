"""The composition experiment on a tiny model: it runs, goes on, and is reported."""

from __future__ import annotations

import dataclasses
import json
import sys
import types

import pytest

from paper.report.study_folder import write_study
from paper.runs.composition import ARMS, CompositionSettings, run_composition
from paper.runs.composition_tasks import TASK_ROWS
from roadkit.errors import RecipeError


@pytest.fixture
def small_world(tmp_path, tiny_llama, tiny_tokenizer, monkeypatch):
    """Four tiny data sets, a tiny model on disk, and a language library of one rule."""
    rows = {
        "german/de_wiki_completion_train.jsonl": [
            {"instruction": f"der Fuchs {i}", "output": "springt"} for i in range(9)
        ],
        "instruct/ultrafeedback_1k.jsonl": [{"instruction": f"name {i}", "output": "the fox"} for i in range(9)],
        "math/mawps_train_clean.jsonl": [{"question": f"{i} plus 1", "answer": i + 1.0} for i in range(9)],
        "math/mawps_test.jsonl": [
            {"instruction": f"{i} plus 2", "output": "", "answer": f"{i + 2}.0"} for i in range(9)
        ],
    }
    for name, lines in rows.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = tmp_path / "model"
    tiny_llama(vocab_size=384).save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    language = types.ModuleType("py3langid")
    language.classify = lambda text: ("de" if "a" in text else "en", 0.0)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "py3langid", language)
    monkeypatch.setitem(TASK_ROWS["small"], "german", ("german/de_wiki_completion_train",))
    settings = CompositionSettings(
        model=str(model), group_size=16, rows=3, held_out=2, epochs=1, batch_size=4, new_tokens=2
    )
    return settings, tmp_path


def test_composition_runs_resumes_and_reports(small_world, placed):
    settings, folder = small_world
    arms = [arm for arm in ARMS if "4" not in arm.name]
    options = {"data": folder / "data", "arms": arms}
    out = folder / "out"
    run_composition(settings, out, data=folder / "data", arms=arms[:2])
    before = (out / "ledger.jsonl").read_bytes()
    said: list[str] = []
    ledger = run_composition(settings, out, progress=said.append, **options)
    assert ledger.path.read_bytes().startswith(before), "finished arms are not run again"
    assert set(placed) == {"cpu:0"}, "models go to the best device"
    assert not [line for line in said if line.startswith("road, 2")]
    assert [row["recipe"]["arm"]["name"] for row in ledger.rows()] == [arm.name for arm in arms]
    for row in ledger.rows():
        tasks = row["recipe"]["arm"]["tasks"]
        table = row["metrics"]["held_out_loss"]
        assert set(table) == {"base", *tasks, *(["+".join(tasks)] if len(tasks) > 1 else [])}
        for task in tasks:
            assert table["base"][task] == ledger.rows()[0]["metrics"]["held_out_loss"]["base"].get(
                task, table["base"][task]
            )
            assert table[task][task] != table["base"][task]
    again = run_composition(settings, out, progress=said.append, **options)
    assert said[-1] == "every arm is in the ledger"
    assert len(again.rows()) == len(arms)
    report, answers, figure, losses, numbers = write_study(ledger)
    assert report.read_text().count("## ") == len(arms)
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert len(json.loads(numbers.read_text())) == len(losses.read_text().splitlines()) - 1
    text = losses.read_bytes()
    assert write_study(ledger)[3].read_bytes() == text
    assert len(answers.read_text().splitlines()) > 6


def test_an_arm_that_does_not_fit_the_budget_is_left_for_later(small_world):
    settings, folder = small_world
    said: list[str] = []
    options = {"data": folder / "data", "arms": ARMS[:1], "progress": said.append}
    ledger = run_composition(settings, folder / "out", budget=0, **options)
    assert ledger.rows() == []
    assert "left out" in said[-1]


def test_the_product_is_the_two_wholes_in_turn(small_world):
    settings, folder = small_world
    with pytest.raises(RecipeError, match="needs the arm 'road, german whole'"):
        run_composition(settings, folder / "out", data=folder / "data", arms=[ARMS[4]])


def test_too_few_rows_are_named(small_world):
    settings, folder = small_world
    with pytest.raises(RecipeError, match="german: 8 rows to train on and 2 held out are asked for, there are 9 and 1"):
        run_composition(dataclasses.replace(settings, rows=8), folder / "out", data=folder / "data", arms=ARMS[:1])


def test_all_missing_rows_are_named_at_once(small_world):
    settings, folder = small_world
    with pytest.raises(RecipeError) as failed:
        run_composition(settings, folder / "out", data=folder / "none")
    for name in ("german/de_wiki_completion_train", "instruct/ultrafeedback_1k", "math/mawps_test", "glue/sst2_dev"):
        assert f"{name}.jsonl" in str(failed.value)


def test_rows_of_other_columns_are_named():
    from paper.runs.composition_tasks import _pairs
    from roadkit.errors import RecipeError
    from roadkit.train.data.tables import Table

    table = Table([{"ctx_de": "Es", "endings_de": ["war", "ist"], "label": 0}], [1], "hellaswag_de.jsonl")
    with pytest.raises(RecipeError, match=r"hellaswag_de.jsonl, row 1: no column 'instruction' \(it has ctx_de"):
        _pairs(table, "german")
