"""Rows come from the folder, else the cache, else the hub; what is missing is named in one line."""

from __future__ import annotations

import gzip
import json

import pytest

from paper.data import GLUE_COLUMNS, ON_HUB, ORIGINS, cache_folder, check_rows, find_file, read_rows, sample_rows
from paper.scoring.glue_tasks import GLUE_TASKS
from roadkit.errors import RecipeError
from roadkit.train.data.tables import Table
from tests.paper.scoring.test_glue_tasks import table_of

HUB = {  # a row of every data set, with its own columns
    "nyu-mll/glue:rte": {"sentence1": "a", "sentence2": "b", "label": 0, "idx": 0},
    "nyu-mll/glue:mrpc": {"sentence1": "a", "sentence2": "b", "label": 1, "idx": 0},
    "nyu-mll/glue:stsb": {"sentence1": "a", "sentence2": "b", "label": 2.5, "idx": 0},
    "nyu-mll/glue:cola": {"sentence": "a", "label": 1, "idx": 0},
    "nyu-mll/glue:sst2": {"sentence": "a", "label": 1, "idx": 0},
    "nyu-mll/glue:qnli": {"question": "a", "sentence": "b", "label": 0, "idx": 0},
    "nyu-mll/glue:qqp": {"question1": "a", "question2": "b", "label": 0, "idx": 0},
    "nyu-mll/glue:mnli": {"premise": "a", "hypothesis": "b", "label": 2, "idx": 0},
    "SetFit/sst2": {"text": "a", "label": 1, "label_text": "positive"},
    "openai/gsm8k:main": {"question": "1 and 2?", "answer": "1 + 2 = <<1+2=3>>3\n#### 3"},
    "argilla/ultrafeedback-binarized-preferences-cleaned": {
        "prompt": "Hi", "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
    },
    "yahma/alpaca-cleaned": {"instruction": "Hi", "input": "", "output": "Ho"},
    "LeoLM/HellaSwag_de": {"ctx_de": "Er", "endings_de": ["a", "b", "c", "d"], "label": "2"},
}  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROADKIT_CACHE", str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the hub, and notes what it was asked for. Files are read as ever."""
    from paper import data

    asked, read_file = [], data.read_table

    def read_table(source: str, split: str = "train") -> Table:
        if source not in HUB:
            return read_file(source)
        asked.append((source, split))
        return Table([HUB[source]], [1], source)

    monkeypatch.setattr(data, "read_table", read_table)
    return asked


def put(path, row: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(row) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def test_the_folder_comes_first_then_the_cache_then_the_hub(tmp_path, cache, hub):
    put(cache / "glue" / "rte_train.jsonl.gz", {"sentence1": "cache"})
    put(tmp_path / "own" / "glue" / "rte_train.json", {"sentence1": "own"})
    (own,) = read_rows(tmp_path / "own", "glue/rte_train")
    kept, dev = read_rows(None, "glue/rte_train", "glue/rte_dev")
    assert (own.rows[0]["sentence1"], kept.rows[0]["sentence1"], dev.rows[0]["sentence1"]) == ("own", "cache", "a")
    assert hub == [("nyu-mll/glue:rte", "validation")]


def test_a_folder_that_was_named_is_the_only_place(tmp_path, cache, hub):
    put(cache / "glue" / "rte_train.jsonl", {"sentence1": "cache"})
    with pytest.raises(RecipeError) as failed:
        read_rows(tmp_path, "glue/rte_train", "glue/rte_dev")
    told = str(failed.value)
    assert told.startswith(
        f"there is no glue/rte_train.jsonl, glue/rte_dev.jsonl in {tmp_path} (nor with another ending"
    )
    assert "--data names the folder that holds glue; the rows of glue are those of nyu-mll/glue on the hub" in told
    assert hub == []


def test_rows_that_no_hub_holds_are_named_with_the_cache_and_the_option(cache, hub):
    with pytest.raises(RecipeError) as failed:
        check_rows(None, "commonsense/boolq_train", "glue/rte_dev", "math/svamp_test")
    told = str(failed.value)
    assert f"no commonsense/boolq_train.jsonl, math/svamp_test.jsonl in {cache}" in told and "rte" not in told
    assert "--data names the folder that holds commonsense, math" in told and "AGI-Edgerunners/LLM-Adapters" in told
    assert "\n" not in told


def test_a_hub_that_cannot_be_reached_is_no_riddle(cache):
    """Tests run offline: `datasets` finds nothing."""
    with pytest.raises(RecipeError) as failed:
        read_rows(None, "glue/rte_train", "glue/rte_dev")
    told = str(failed.value)
    assert f"no glue/rte_train.jsonl, glue/rte_dev.jsonl in {cache}" in told
    assert "nyu-mll/glue:rte" in told and "--data" in told and "\n" not in told


def test_files_that_are_there_need_no_hub(cache):
    put(cache / "glue" / "rte_train.jsonl", {"sentence1": "a"})
    with pytest.raises(RecipeError, match=r"no glue/rte_dev\.jsonl in"):
        read_rows(None, "glue/rte_train", "glue/rte_dev")


def test_other_names_of_a_file_are_found(tmp_path):
    put(tmp_path / "commonsense" / "social_i_qa_test.jsonl", {"answer": "answer1"})
    assert find_file(tmp_path, "commonsense/siqa_test") == tmp_path / "commonsense" / "social_i_qa_test.jsonl"
    assert find_file(tmp_path, "commonsense/piqa_test") is None


@pytest.mark.parametrize("name", ON_HUB)
def test_rows_of_the_hub_have_the_columns_of_our_files(name, cache, hub):
    (table,) = read_rows(None, name)
    (row,) = table.rows
    if name.startswith("glue/"):
        pairs = any(task in name for task in ("rte", "mrpc", "stsb", "qnli", "qqp", "mnli"))
        assert row["sentence1"] == "a" and row.get("sentence2") == ("b" if pairs else None) and "label" in row
    elif name == "math/gsm8k_official_train":
        assert row["question"] == "1 and 2?"
    elif name == "math/gsm8k_test":
        assert (row["instruction"], row["answer"]) == ("1 and 2?", "3")
    elif name == "german/hellaswag_de":
        assert (row["instruction"], row["output"]) == ("Er", "c")
    else:
        assert (row["instruction"], row["input"], row["output"]) == ("Hi", "", "Ho")


def test_hellaswag_de_takes_the_last_ending_if_some_are_missing(cache, hub, monkeypatch):
    monkeypatch.setitem(HUB, "LeoLM/HellaSwag_de", {"ctx": "Er", "endings_de": ["a", "b"], "label": "3"})
    assert read_rows(None, "german/hellaswag_de")[0].rows[0]["output"] == "b"


def test_every_glue_task_is_on_the_hub_and_every_folder_has_an_origin():
    assert GLUE_COLUMNS.keys() == GLUE_TASKS.keys()
    assert {name.partition("/")[0] for name in ON_HUB} <= ORIGINS.keys()


def test_rows_are_drawn_by_the_seed_in_file_order():
    rows = [row["i"] for row in sample_rows(table_of(50), 10, seed=1).rows]
    assert rows == sorted(rows)
    assert rows != [row["i"] for row in sample_rows(table_of(50), 10, seed=2).rows]
    assert len(sample_rows(table_of(5), 10, seed=0)) == len(sample_rows(table_of(5), None, seed=0)) == 5
