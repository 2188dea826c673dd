"""Files of every kind as rows, and problems with file, row and column."""

from __future__ import annotations

import gzip
import json

import pytest

from roadkit.errors import RecipeError
from roadkit.train.data.tables import read_table, split_table

ROWS = [{"prompt": "a", "completion": "1"}, {"prompt": "b\nc", "completion": "2"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    from pyarrow import Table, parquet

    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    (tmp_path / "c.json").write_text(json.dumps(ROWS))
    (tmp_path / "d.json").write_text(LINES)
    (tmp_path / "e.csv").write_text('prompt,completion\na,1\n"b\nc",2\n')
    (tmp_path / "f.tsv").write_text('prompt\tcompletion\na\t1\n"b\nc"\t2\n')
    parquet.write_table(Table.from_pylist(ROWS), tmp_path / "g.parquet")
    (tmp_path / "h.jsonl").write_text("\ufeff" + LINES, encoding="utf-8")
    for path in tmp_path.iterdir():
        assert list(read_table(str(path)).rows) == ROWS, path.name


def test_rows_are_numbered_as_in_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + LINES)
    table = read_table(str(path))
    assert table[0].where == f"{path}, row 2"
    assert [row.number for row in table] == [2, 3]
    assert len(read_table(str(path), limit=1)) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "is empty: it has no rows"),
        ("a.jsonl", "\n \n", "is empty"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl, row 2 is not JSON"),
        ("a.jsonl", "[1]\n", "row 1: a row must be a JSON object, this is a list"),
        ("a.json", "[{}, 3]", "row 2: a row must be a JSON object, this is a int"),
        ("a.csv", "x,y\n1,2,3\n", r"row 1: 3 cells for the 2 columns x, y"),
        ("a.csv", "x,y\n1\n", r"row 1: 1 cells for the 2 columns x, y"),
        ("a.txt", "x", "files of kind '.txt' are not read"),
        ("a.parquet", "x", "a.parquet cannot be read"),
        ("a.jsonl.gz", "x", "cannot be read: Not a gzipped file"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(RecipeError, match=message):
        read_table(str(tmp_path / name))


def test_broken_utf8_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(RecipeError, match="cannot be read.*utf-8"):
        read_table(str(tmp_path / "a.jsonl"))


def test_missing_file_gets_the_nearest_name(tmp_path):
    (tmp_path / "answers.jsonl").write_text(LINES)
    with pytest.raises(RecipeError, match=r"no such file; did you mean 'answers\.jsonl'"):
        read_table(str(tmp_path / "answer.jsonl"))
    with pytest.raises(RecipeError, match="there is no folder"):
        read_table(str(tmp_path / "none" / "answer.jsonl"))


def test_cells_name_row_and_columns(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n{"promt": null}\n')
    table = read_table(str(tmp_path / "a.jsonl"))
    with pytest.raises(RecipeError, match=r"row 2: no column 'prompt'; did you mean 'promt'\? \(it has promt\)"):
        table[1].text("prompt")
    with pytest.raises(RecipeError, match="row 2, column 'promt': must be text, is empty"):
        table[1].text("promt")


def test_split_is_the_same_for_the_same_seed(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"n": i}) + "\n" for i in range(20)))
    table = read_table(str(tmp_path / "a.jsonl"))
    train, held = split_table(table, fraction=0.25, seed=3)
    assert (len(train), len(held)) == (15, 5)
    assert sorted([*train.numbers, *held.numbers]) == list(range(1, 21))
    assert split_table(table, fraction=0.25, seed=3)[1].numbers == held.numbers
    assert split_table(table, fraction=0.25, seed=4)[1].numbers != held.numbers
    with pytest.raises(RecipeError, match="leaves none to train on"):
        split_table(table.take([0]), fraction=0.5, seed=0)


def test_hub_data_set_is_read_by_name_and_configuration(monkeypatch):
    import datasets

    asked = []

    def load(name, configuration, split):
        asked.append((name, configuration, split))
        return [{"text": "x"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_table("owner/name:main", split="test").rows[0] == {"text": "x"}
    assert asked == [("owner/name", "main", "test")]
