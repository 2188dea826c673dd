"""The ledger, LoReFT and the composition experiment on a tiny model."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch

from paper.ledger import FIELDS, Ledger, run_key
from paper.tuning.loreft import LoreftEdit
from roadkit.errors import RecipeError


def test_a_ledger_keeps_finished_runs(tmp_path):
    ledger = Ledger(tmp_path / "runs" / "ledger.jsonl")
    assert ledger.rows() == []
    ledger.append({"lr": 1, "arm": "a"}, seed=0, metrics={"loss": 1.5}, seconds=2.04)
    ledger.append({"lr": 1, "arm": "a"}, seed=1, metrics={"loss": 2.5}, seconds=1)
    found = Ledger(ledger.path).find({"arm": "a", "lr": 1}, seed=0)
    assert found is not None
    assert found.keys() == FIELDS
    assert (found["metrics"], found["seconds"]) == ({"loss": 1.5}, 2.0)
    assert ledger.find({"lr": 2, "arm": "a"}, seed=0) is None
    assert run_key({"a": 1, "b": 2}, 0) == run_key({"b": 2, "a": 1}, 0) != run_key({"a": 1, "b": 2}, 1)
    assert run_key({"a": 1, "new": None, "newer": False}, 0) == run_key({"a": 1}, 0) != run_key({"a": 1, "new": 0}, 0)


def test_of_a_run_done_again_the_last_counts(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for arm, value in (("a", 1), ("b", 2), ("a", 3)):
        ledger.append({"arm": arm}, seed=0, metrics={"value": value}, seconds=1)
    assert [row["metrics"]["value"] for row in ledger.rows()] == [3, 2]
    found = ledger.find({"arm": "a"}, seed=0)
    assert found is not None and found["metrics"] == {"value": 3}


def test_a_line_that_a_kill_left_counts_for_nothing(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append({"arm": "a"}, seed=0, metrics={}, seconds=1)
    with open(ledger.path, "ab") as file:
        file.write(b'{"key": "half a li')
    assert len(ledger.rows()) == 1
    ledger.append({"arm": "b"}, seed=0, metrics={}, seconds=1)
    assert [row["recipe"]["arm"] for row in ledger.rows()] == ["a", "b"]


def test_a_spoilt_ledger_is_named(tmp_path):
    (tmp_path / "ledger.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(RecipeError, match=r"line 1 is no run"):
        Ledger(tmp_path / "ledger.jsonl").rows()
    (tmp_path / "ledger.jsonl").write_text('{"key": 1, "code": "0.0.1 abc"}\n')
    with pytest.raises(RecipeError, match=r"no run of this version \(written by roadkit 0\.0\.1 abc, this is 0\.1\.0"):
        Ledger(tmp_path / "ledger.jsonl").rows()
    (tmp_path / "ledger.jsonl").write_text("nonsense\n")
    with pytest.raises(RecipeError, match=r"line 1 is not JSON"):
        Ledger(tmp_path / "ledger.jsonl").rows()


def test_loreft_is_its_formula_with_each_tasks_own_ranks():
    edit, h = LoreftEdit(12, [2, 3]), torch.randn(4, 12)
    r, w, c = edit.rotate.weight, edit.source.weight, edit.source.bias
    torch.testing.assert_close(r @ r.T, torch.eye(5), rtol=0, atol=1e-5)
    whole = h + (h @ w.T + c - h @ r.T) @ r
    torch.testing.assert_close(edit(h, torch.ones(4, 2, dtype=torch.bool)), whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(edit(h, torch.zeros(4, 2, dtype=torch.bool)), h)
    first = edit(h, torch.tensor([[True, False]] * 4))
    torch.testing.assert_close(first @ r[2:].T, h @ r[2:].T, rtol=1e-4, atol=1e-5)  # the other task's ranks keep h


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
    from paper.runs import composition
    from paper.tuning.tasks import SMALL, Source

    monkeypatch.setitem(SMALL, "german", Source("german/de_wiki_completion_train.jsonl"))
    monkeypatch.setitem(SMALL, "instruct", Source("instruct/ultrafeedback_1k.jsonl"))
    settings = composition.Settings(
        model=str(model), group_size=16, rows=3, held_out=2, epochs=1, batch_size=4, new_tokens=2
    )
    return composition, settings, tmp_path


def test_composition_runs_resumes_and_reports(small_world, placed):
    composition, settings, folder = small_world
    arms = [arm for arm in composition.ARMS if "4" not in arm.name]
    options = {"data": folder / "data", "arms": arms}
    out = folder / "out"
    composition.run(settings, out, data=folder / "data", arms=arms[:2])
    before = (out / "ledger.jsonl").read_bytes()
    said: list[str] = []
    ledger = composition.run(settings, out, progress=said.append, **options)
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
    again = composition.run(settings, out, progress=said.append, **options)
    assert said[-1] == "every arm is in the ledger"
    assert len(again.rows()) == len(arms)
    from paper.report.report import write

    report, answers, figure, losses, numbers = write(ledger)
    assert report.read_text().count("## ") == len(arms)
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert len(json.loads(numbers.read_text())) == len(losses.read_text().splitlines()) - 1
    text = losses.read_bytes()
    assert write(ledger)[3].read_bytes() == text
    assert len(answers.read_text().splitlines()) > 6


def test_an_arm_that_does_not_fit_the_budget_is_left_for_later(small_world):
    composition, settings, folder = small_world
    said: list[str] = []
    options = {"data": folder / "data", "arms": composition.ARMS[:1], "progress": said.append}
    ledger = composition.run(settings, folder / "out", budget=0, **options)
    assert ledger.rows() == []
    assert "left out" in said[-1]


def test_the_product_is_the_two_wholes_in_turn(small_world):
    composition, settings, folder = small_world
    with pytest.raises(RecipeError, match="needs the arm 'road, german whole'"):
        composition.run(settings, folder / "out", data=folder / "data", arms=[composition.ARMS[4]])


def test_too_few_rows_are_named(small_world):
    composition, settings, folder = small_world
    import dataclasses

    with pytest.raises(RecipeError, match="german: 8 rows to train on and 2 held out are asked for, there are 9 and 1"):
        composition.run(
            dataclasses.replace(settings, rows=8), folder / "out", data=folder / "data", arms=composition.ARMS[:1]
        )
