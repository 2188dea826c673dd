"""Every experiment end to end on tiny models, and what a kill leaves behind."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from transformers import RobertaConfig, RobertaForSequenceClassification
from typer.testing import CliRunner

from paper.cli import app
from paper.ledger import Ledger
from paper.report.quality import quality
from paper.report.scores import chosen_runs, glue_groups, is_search, suite_choices
from paper.report.tables import tables
from paper.runs import glue, instruction, multimodal, pilot, reasoning
from paper.runs.jobs import Job, run_jobs
from paper.scoring.glue import sample_rows, split_dev
from paper.tuning.decoders import Tuned, prompt_of
from paper.tuning.encoders import FULL, EncoderData, with_pooler
from roadkit import Adapter, models
from roadkit.errors import RecipeError, RoadkitError
from roadkit.train.data.tables import Table
from roadkit.train.model.base import training_device


def table_of(count: int) -> Table:
    return Table([{"i": i} for i in range(count)], list(range(1, count + 1)), "ours")


@pytest.mark.parametrize(("count", "validation"), [(277, 139), (1043, 522), (2000, 1000), (2001, 1000), (5463, 1000)])
def test_the_development_set_is_cut_as_in_the_paper(count, validation):
    first, second = split_dev(table_of(count), seed=0)
    assert (len(first), len(second)) == (validation, count - validation)
    assert {row["i"] for row in (*first.rows, *second.rows)} == set(range(count))
    assert split_dev(table_of(count), seed=0)[0].rows == first.rows


def test_rows_are_drawn_by_the_seed_in_file_order():
    rows = [row["i"] for row in sample_rows(table_of(50), 10, seed=1).rows]
    assert rows == sorted(rows)
    assert rows != [row["i"] for row in sample_rows(table_of(50), 10, seed=2).rows]
    assert len(sample_rows(table_of(5), 10, seed=0)) == len(sample_rows(table_of(5), None, seed=0)) == 5


def test_a_finished_run_is_not_run_again_and_a_budget_leaves_the_rest(ledger, monkeypatch):
    done, clock = [], [0.0]
    monkeypatch.setattr("os.times", lambda: (clock[0], 0.0, 0.0, 0.0, 0.0))

    def job(name):
        return Job(name, {"experiment": "x", "name": name}, 0, lambda: done.append(name) or {"value": 1})

    assert run_jobs([job("a"), job("b")], ledger) == 0
    assert run_jobs([job("a"), job("b"), job("c")], ledger) == 0
    assert done == ["a", "b", "c"]
    assert run_jobs([job("a"), job("d")], ledger, budget=0) == 1  # what is done costs nothing, what is not waits
    busy = Job("e", {"name": "e"}, 0, lambda: clock.append(clock.pop() + 50) or {"value": 1})
    assert run_jobs([busy, job("f")], ledger, budget=1.5) == 1  # the second would take as long as the first did
    assert done == ["a", "b", "c"]


def test_glue_searches_then_reruns_the_best_on_further_seeds(small, data, ledger):
    options = {"data": data, "tasks": ["sst2", "stsb"], "methods": ["road_1", "head"], "seeds": 2, "num_rates": 2}
    assert glue.run(small, ledger, **options) == 0
    rows = ledger.rows()
    assert len(rows) == 2 * 2 * (2 + 1)
    for task in ("sst2", "stsb"):
        for method in ("road_1", "head"):
            own = [row for row in rows if row["recipe"]["task"] == task and row["recipe"]["method"] == method]
            first = [row for row in own if row["seed"] == 0]
            (again,) = [row for row in own if row["seed"] == 1]
            assert again["recipe"]["learning_rate"] == glue.best(first)["recipe"]["learning_rate"]
            assert len({row["recipe"]["learning_rate"] for row in first}) == 2
    assert {row["metrics"]["metric"] for row in rows} == {"accuracy", "pearson"}
    glue.run(small, ledger, **options)
    assert len(ledger.rows()) == len(rows)


def test_a_shorter_search_chooses_the_rate_of_the_runs_that_count(small, data, ledger):
    settings = dataclasses.replace(small, epochs=2, search_epochs=1, bf16=True)
    glue.run(settings, ledger, data=data, tasks=["sst2"], methods=["road_1"], seeds=2, num_rates=2)
    rows = ledger.rows()
    short = [row for row in rows if row["recipe"]["epochs"] == 1]
    long = [row for row in rows if row["recipe"]["epochs"] == 2]
    assert [row["seed"] for row in short] == [0, 0] and [row["seed"] for row in long] == [0, 1]
    assert {row["recipe"]["learning_rate"] for row in long} == {glue.best(short)["recipe"]["learning_rate"]}
    assert long[0]["metrics"]["steps"] == 2 * short[0]["metrics"]["steps"]


def test_of_equal_scores_the_smaller_loss_is_better():
    rows = [{"metrics": {"validation": 0.0, "validation_loss": loss}} for loss in (0.7, 0.6, 0.65)]
    assert glue.best(rows) is rows[1]


def test_presets_are_the_papers_settings(ledger, monkeypatch):
    monkeypatch.setattr(glue, "_compute", lambda rows, run, folder: {"epochs": run.settings.epochs, "rate": run.rate})
    monkeypatch.setattr(glue._Jobs, "_rows", lambda self, run: None)
    options = {"data": None, "tasks": ["rte", "mnli"], "methods": ["road_1"], "presets": True}
    glue.run(FULL, ledger, **options, seeds=3)
    found = {(row["recipe"]["task"], row["recipe"]["batch_size"], *row["metrics"].values()) for row in ledger.rows()}
    assert found == {("rte", 32, 20, 3e-3), ("mnli", 16, 10, 1e-3)}
    ((group, _),) = glue_groups(ledger.rows())  # one table, though epochs and batch sizes differ
    assert len(ledger.rows()) == 6
    with pytest.raises(RecipeError, match="presets of RoAd on roberta-base and roberta-large"):
        glue.run(dataclasses.replace(FULL, model="minilm"), ledger, **options)
    with pytest.raises(RecipeError, match="not of lora"):
        glue.run(FULL, ledger, **options | {"methods": ["lora"]})


def test_training_improves_on_the_head_it_began_with(small, data):
    rows = EncoderData.load("sst2", dataclasses.replace(small, rows=None, epochs=6), data=data, seed=0)
    fitted = rows.fit(rows.fresh(), "road_1", 2e-2)
    assert fitted.validation["accuracy"] > 0.9
    assert rows.score(fitted.model, rows.test) > 0.9
    assert rows.score(rows.fresh(), rows.test) < 0.9


def test_the_same_seed_gives_the_same_run(small, data):
    rows = EncoderData.load("cola", small, data=data, seed=3)
    losses = [rows.fit(rows.fresh(), "lora", 1e-2).train_loss for _ in range(2)]
    assert losses[0] == losses[1]


def test_glue_names_what_is_missing(small, tmp_path, ledger):
    with pytest.raises(RecipeError, match=r"rte_train\.jsonl is missing"):
        glue.run(small, ledger, data=tmp_path, tasks=["rte"], methods=["head"])
    with pytest.raises(RecipeError, match="did you mean 'rte'"):
        glue.run(small, ledger, data=tmp_path, tasks=["rtee"], methods=["head"])


def test_pilot_studies_run(small, data, ledger):
    pilot.displacements(small, ledger, data=data, methods=["road_1", "full"])
    pilot.disentangle(small, ledger, data=data, tasks=["stsb"], epochs=1)
    first, second, third, fourth = (row["metrics"] for row in ledger.rows())
    assert len(first["magnitude"]) == len(second["direction"]) == 2  # blocks
    assert second["direction"][-1]["q50"] < 1
    assert first["samples"] == small.validation + small.test  # every development row that was drawn
    assert set(third["scores"]) == {"output", "magnitude", "angle"}
    assert set(fourth["scores"]) == {"output"}
    recipe = ledger.rows()[2]["recipe"]
    assert (recipe["epochs"], recipe["batch_size"]) == (1, 32) and "bf16" not in recipe  # what a classifier trains with


def test_commonsense_answers_with_an_adapter_and_merged(decoder, data, ledger):
    options = {"data": data, "tasks": ["boolq", "hellaswag"]}
    assert reasoning.run("commonsense", decoder, ledger, methods=["base", "road_1", "lora"], **options) == 0
    for row in ledger.rows():
        assert set(row["metrics"]["accuracy"]) == {"boolq", "hellaswag"}
        assert row["metrics"]["questions"] == {"boolq": 2, "hellaswag": 1}
    assert [row["metrics"]["trainable"] > 0 for row in ledger.rows()] == [False, True, True]
    with pytest.raises(RecipeError, match="did you mean 'boolq'"):
        reasoning.run("commonsense", decoder, ledger, data=data, tasks=["boolqq"])


def test_runs_at_another_learning_rate_are_told_apart(decoder, data, ledger):
    options = {"data": data, "tasks": ["boolq"], "methods": ["base", "road_1"]}
    for rate in (None, 1e-3):
        reasoning.run("commonsense", decoder, ledger, learning_rate=rate, **options)
    assert [row["recipe"]["learning_rate"] for row in ledger.rows()] == [0.0, 3e-3, 1e-3]
    lines = tables(ledger.rows())["commonsense"].splitlines()[4:7]
    assert [line.split(" | ")[0:3:2] for line in lines] == [["| base", "–"], ["| RoAd1", "0.003"], ["| RoAd1", "0.001"]]
    assert [(row["method"], row["seeds"]) for row in quality(ledger.rows())] == [("base", 1), ("road_1", 1)]


def test_a_search_chooses_each_methods_learning_rate_before_its_runs(decoder, data, ledger):
    search = reasoning.Search(rates=2, rows=4, held_out=1)
    options = {"data": data, "tasks": ["boolq"], "search": search}
    methods = ["base", "road_1", "lora"]
    reasoning.run("commonsense", decoder, ledger, methods=methods, seeds=(0, 1), **options)
    tried, runs = ([row["recipe"] for row in ledger.rows() if is_search(row) == wanted] for wanted in (True, False))
    assert [(recipe["method"], recipe["learning_rate"]) for recipe in tried] == [
        ("road_1", 3e-3), ("lora", 5e-4), ("road_1", 1e-3), ("lora", 1.7e-4),
    ]  # fmt: skip
    assert {(recipe["rows"], recipe["questions"]) for recipe in tried} == {(4, 1)}
    rates = suite_choices([row for row in ledger.rows() if is_search(row)])
    assert [recipe["method"] for recipe in runs] == 2 * methods
    assert [recipe["learning_rate"] for recipe in runs] == 2 * [0.0, rates["road_1"], rates["lora"]]
    reasoning.run("commonsense", decoder, ledger, methods=methods, seeds=(0, 1), **options)
    assert len(ledger.rows()) == len(tried) + len(runs)
    with pytest.raises(RecipeError, match=r"a search chooses .* 0\.001 was given"):
        reasoning.run("commonsense", decoder, ledger, learning_rate=1e-3, **options)


def test_the_best_rate_on_held_out_rows_is_run_and_an_unfinished_search_waits(decoder, data, ledger, monkeypatch):
    search = reasoning.Search(rates=3, rows=4, held_out=1)
    for method, rate, score in (
        ("road_1", 3e-3, 0.4),
        ("road_1", 1e-3, 0.7),
        ("road_1", 9e-3, 0.5),
        ("lora", 5e-4, 0.9),
    ):
        recipe = search.recipe("commonsense", decoder, method, rate)
        ledger.append(recipe, seed=0, metrics={"validation": score}, seconds=1)
    options = {"data": data, "search": search}
    left = reasoning.run("commonsense", decoder, ledger, methods=["road_1", "lora"], budget=0, **options)
    assert left == 1 + 2  # RoAd1's run, and two rates of LoRA, whose own run is not known yet
    monkeypatch.setattr(reasoning, "_compute", lambda *_: {})
    reasoning.run("commonsense", decoder, ledger, methods=["road_1"], **options)
    assert ledger.rows()[-1]["recipe"]["learning_rate"] == 1e-3


def test_held_out_rows_are_none_of_a_search_runs_own(decoder, data):
    suite = reasoning.SUITES["commonsense"]
    table, asked = reasoning.held_out_rows(suite, data, dataclasses.replace(decoder, rows=12, questions=4))
    assert set(asked) == set(suite.trained) and all(len(rows) == 4 for rows in asked.values())
    assert len(table) == 12
    for i, rows in enumerate(asked.values()):  # eight of each task in all
        own = [row["instruction"] for row in table.rows[3 * i : 3 * i + 3]]
        assert not set(own) & {row["instruction"] for row in rows}
    with pytest.raises(RecipeError, match="has 8 rows, 8 are to be held out"):
        reasoning.held_out_rows(suite, data, dataclasses.replace(decoder, rows=12, questions=8))


def test_another_tasks_answer_word_is_counted_apart_from_none():
    asked = {"piqa": [{"answer": "solution1"}] * 3, "boolq": [{"answer": "true"}]}
    texts = ["solution2 or solution1", "the correct answer is answer1", "I do not know", "true"]
    found = reasoning._scores(reasoning.SUITES["commonsense"], asked, texts)
    assert found["accuracy"] == {"piqa": 0, "boolq": 1}
    assert (found["answered"], found["foreign"]) == (0.5, 0.25)


@pytest.mark.parametrize("method", ["road_1", "lora"])
def test_every_epoch_is_kept_and_the_last_is_the_trained_model(decoder, data, method):
    settings = dataclasses.replace(decoder, epochs=3, new_tokens=8)
    table = reasoning.training_rows(reasoning.SUITES["commonsense"], data, settings, seed=0)
    question = ["Is 1 even?"]
    kept = Tuned.train(settings, method, 5e-2, table, seed=0, every_epoch=True)
    answers = [kept.answer(question, new_tokens=8, epoch=epoch) for epoch in range(3)]
    assert len(kept.epochs) == 3 and answers[0] != answers[2]
    assert kept.answer(question, new_tokens=8, epoch=0) == answers[0]  # whatever was asked in between
    last = Tuned.train(settings, method, 5e-2, table, seed=0)
    assert len(last.epochs) == 1 and last.answer(question, new_tokens=8) == answers[2]


def test_the_best_epoch_is_reported(decoder, data, ledger, monkeypatch):
    given = iter([["true", "false"], ["true", "true"], ["false", "false"]])
    monkeypatch.setattr(Tuned, "answer", lambda self, instructions, **options: next(given))
    monkeypatch.setattr(reasoning, "sample_rows", lambda table, count, seed: Table(
        [{"instruction": str(i), "output": "true", "answer": "true"} for i in range(2)], [1, 2], "ours"
    ))  # fmt: skip
    settings = dataclasses.replace(decoder, epochs=3)
    options = {"data": data, "tasks": ["boolq"], "methods": ["road_1"], "every_epoch": True}
    reasoning.run("commonsense", settings, ledger, **options)
    (row,) = ledger.rows()
    assert [epoch["boolq"] for epoch in row["metrics"]["epochs"]] == [0.5, 1.0, 0.0]
    assert row["metrics"]["accuracy"] == {"boolq": 1.0}
    assert row["recipe"]["every_epoch"]


def test_the_full_scale_reads_the_papers_file(data, decoder, tmp_path):
    full = dataclasses.replace(decoder, scale="full", rows=2)
    (tmp_path / "math").mkdir()
    rows = [{"instruction": "1?", "input": "", "output": "1", "answer": "1"}] * 3
    (tmp_path / "math" / "math_10k.json").write_text(json.dumps(rows))
    suite = reasoning.SUITES["arithmetic"]
    assert len(reasoning.training_rows(suite, tmp_path, full, seed=0)) == 2
    with pytest.raises(RecipeError, match=r"no math_10k\.jsonl in"):
        reasoning.training_rows(suite, data, full, seed=0)


def test_arithmetic_and_instruct_run(decoder, data, ledger, tmp_path):
    reasoning.run("arithmetic", decoder, ledger, data=data, methods=["road_1"], tasks=["svamp"])
    instruction.run(decoder, ledger, data=data, output=tmp_path / "answers", methods=["base", "road_1"])
    arithmetic, base, tuned = ledger.rows()
    assert arithmetic["metrics"]["questions"] == {"svamp": 1} and arithmetic["metrics"]["train_loss"] > 0
    assert base["metrics"]["answers"] == tuned["metrics"]["answers"] == 2
    path = tmp_path / "answers" / f"road_1-0-{tuned['key'][:8]}.json"
    written = json.loads(path.read_text())
    assert [entry["instruction"] for entry in written] == ["Hi", "Ho"]
    assert {entry["generator"] for entry in written} == {"roadkit-road_1"}
    path.unlink()  # as in a clone of the ledger alone: what the judge reads is made again, and the ledger says it once
    instruction.run(decoder, ledger, data=data, output=tmp_path / "answers", methods=["base", "road_1"])
    assert json.loads(path.read_text()) == written
    assert [row["key"] for row in ledger.rows()] == [row["key"] for row in (arithmetic, base, tuned)]


def test_full_scale_instructions_come_from_the_hub(data, monkeypatch):
    rows = {
        "argilla/ultrafeedback-binarized-preferences-cleaned": {
            "prompt": "Hi", "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
        },
        "yahma/alpaca-cleaned": {"instruction": "Add", "input": "1 and 2", "output": "3"},
    }  # fmt: skip
    monkeypatch.setattr(instruction, "read_table", lambda name: Table([rows[name]] * 3, [1, 2, 3], name))
    full = dataclasses.replace(instruction.SETTINGS["full"], rows=2)
    found = {name: instruction.training_rows(name, data, full, seed=0).rows for name in instruction.SOURCES}
    assert found["ultrafeedback"] == [{"instruction": "Hi", "input": "", "output": "Ho"}] * 2
    assert found["alpaca"] == [{"instruction": "Add", "input": "1 and 2", "output": "3"}] * 2


def test_prefixes_answer_through_transformers(decoder, data, ledger):
    reasoning.run("commonsense", decoder, ledger, data=data, methods=["prefix"], tasks=["boolq"])
    (row,) = ledger.rows()
    assert row["metrics"]["trainable"] == 20 * 2 * 2 * (2 * 16) and row["metrics"]["questions"] == {"boolq": 2}
    with pytest.raises(RecipeError, match="prefix tuning keeps its last epoch only"):
        reasoning.run("commonsense", decoder, ledger, data=data, methods=["prefix"], tasks=["boolq"], every_epoch=True)


def test_the_papers_training_file_for_arithmetic_is_warned_of(decoder, data, ledger):
    told = []
    full = dataclasses.replace(decoder, scale="full")
    with pytest.raises(RecipeError, match=r"no math_10k\.jsonl in .*ft-training_set"):
        reasoning.run("arithmetic", full, ledger, data=data, methods=["road_1"], progress=told.append)
    assert told == ["math_10k holds rows that MAWPS tests: MAWPS scores say less than they seem to"]


def test_the_engine_answers_as_transformers_does_with_the_adapter_merged(decoder, data):
    import torch

    import roadkit as rk
    from roadkit import models

    table = reasoning.training_rows(reasoning.SUITES["commonsense"], data, decoder, seed=0)
    tuned = Tuned.train(dataclasses.replace(decoder, epochs=6), "road_1", 3e-2, table, seed=0)
    questions = ["Is 1 even?", "Is 22 even?"]
    answers = tuned.answer(questions, new_tokens=6)
    assert answers != Tuned.train(decoder, "base", 0.0, table, seed=0).answer(questions, new_tokens=6)
    model, tokenizer = models.load_causal(decoder.model), models.load_tokenizer(decoder.model)
    rk.merge(model, tuned.adapter)
    for question, answer in zip(questions, answers, strict=True):
        ids = tokenizer(prompt_of(question), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
            )
        assert tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True) == answer


def test_multimodal_plumbing_runs(llama, ledger):
    multimodal.run(ledger, settings=multimodal.Settings(tokenizer=llama, rows=4, epochs=1))
    assert [row["recipe"]["method"] for row in ledger.rows()] == ["lora", "road_4", "road_1+lora"]
    for row in ledger.rows():
        assert "plumbing only" in row["recipe"]["scale"]
        assert set(row["metrics"]["scores"]) == {"gqa", "scienceqa", "textvqa", "pope"}


@pytest.mark.slow
def test_an_experiment_goes_on_after_a_kill(bert, data, tmp_path):
    path = tmp_path / "ledger.jsonl"
    command = [
        sys.executable, "-m", "paper", "glue", "--model", bert, "--data", str(data), "--ledger", str(path),
        "--tasks", "sst2", "--methods", "head,road_1", "--rates", "2", "--epochs", "1", "--rows", "12", "--json",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < 1):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = path.read_bytes()
    with open(path, "ab") as file:
        file.write(b'{"key": "half a li')  # what a kill in the middle of a write leaves
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"ledger": str(path), "runs": 4, "left": 0}
    assert path.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    rows = Ledger(path).rows()
    assert len({row["key"] for row in rows}) == len(rows) == 4


def test_rows_of_several_tasks_in_shared_batches_score_as_alone(small, data, ledger, tmp_path):
    settings = dataclasses.replace(small, head_learning_rate=5e-3)
    options = {"data": data, "tasks": ["sst2", "stsb"], "methods": ["road_1", "head"], "num_rates": 2}
    glue.run(settings, ledger, **options, output=tmp_path / "kept")
    *alone, together = ledger.rows()
    assert len(alone) == 8 and together["recipe"]["experiment"] == "glue_together"
    assert together["recipe"]["task"] == ["sst2", "stsb"] and together["recipe"]["method"] == "road_1"
    assert together["metrics"]["test"] == pytest.approx(together["metrics"]["apart"], abs=1e-5)
    assert len(list((tmp_path / "kept").iterdir())) == 4  # every RoAd that may be the best, and no other method
    assert Adapter.load(next((tmp_path / "kept").iterdir())).heads.keys() == {"classifier", "bert.pooler"}


def test_the_pooler_trains_with_the_classifier_unless_frozen(small, data):
    for frozen, heads in ((False, {"bert.pooler", "classifier"}), (True, {"classifier"})):
        rows = EncoderData.load("sst2", dataclasses.replace(small, frozen_pooler=frozen), data=data, seed=0)
        tuned = rows.fit(rows.fresh(), "head", 1e-2).model
        assert {
            name.rpartition(".dense")[0] or name.rpartition(".")[0]
            for name, p in tuned.named_parameters()
            if p.requires_grad
        } == heads
    tiny = {
        "vocab_size": 30,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    roberta = RobertaForSequenceClassification(RobertaConfig(**tiny))
    assert with_pooler(roberta, rows.prepared.recipe) == ("classifier",)  # which has such a layer inside


def test_a_grid_searches_epochs_and_batch_sizes_too(ledger, monkeypatch):
    def compute(rows, run, folder):
        good = (run.settings.epochs, run.settings.batch_size, run.rate) == (10, 32, 3e-3)
        return {"metric": "accuracy", "validation": float(good), "test": 0.5, "trainable": 7, "steps": 1}

    monkeypatch.setattr(glue, "_compute", compute)
    monkeypatch.setattr(glue._Jobs, "_rows", lambda self, run: None)
    glue.run(FULL, ledger, data=None, tasks=["rte", "sst2"], methods=["road_1"], seeds=3, grid=True)
    rows = ledger.rows()
    assert len(rows) == 4 * (2 * 2 + 2) + 2 * 2  # sst2 has one number of epochs; two more seeds of each best
    again = [row["recipe"] for row in rows if row["seed"]]
    assert {(row["epochs"], row["batch_size"], row["learning_rate"]) for row in again} == {(10, 32, 3e-3)}
    ((group, search),) = glue_groups(rows)
    found = chosen_runs(group, search)["road_1"]
    assert {task: (sorted(kept), tried) for task, (kept, tried) in found.items()} == {
        "rte": ([0, 1, 2], 16),
        "sst2": ([0, 1, 2], 8),
    }
    assert "10 or 20 epochs, batches of 16 or 32" in tables(rows)["glue"]
    assert "--scale full --tasks rte,sst2 --methods road_1 --rates 4 --seeds 3" in tables(rows)["summary"]


def test_a_grid_and_fixed_epochs_contradict_each_other(tmp_path):
    words = ["glue", "--grid", "--epochs", "3", "--ledger", str(tmp_path / "ledger.jsonl")]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, RoadkitError) and "--grid searches epochs and batch sizes" in str(done.exception)


def test_models_go_where_there_is_a_gpu(small, data, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert models.best_device() == training_device(None) == "cuda"
    monkeypatch.setattr(models, "best_device", lambda: "meta")
    rows = EncoderData.load("sst2", small, data=data, seed=0)
    assert rows.fresh().device.type == "meta"


def test_shared_batches_say_whose_adapter_is_not_there(small, data, ledger, tmp_path):
    told = []
    options = {"data": data, "methods": ["road_1"], "num_rates": 1, "progress": told.append}
    glue.run(small, ledger, tasks=["sst2"], **options)
    glue.run(small, ledger, tasks=["sst2", "stsb"], **options, output=tmp_path / "kept")
    assert len(ledger.rows()) == 2
    assert f"left out, no adapter of sst2 is in {tmp_path / 'kept'}" in told[-1]
