"""The commands of `roadkit adapter` that compute with several adapters."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from roadkit import algebra
from roadkit.adapter import Adapter
from roadkit.cli import app
from roadkit.errors import RoadkitError


@pytest.fixture
def folder(tmp_path, tiny_llama, random_adapter):
    model = tiny_llama()
    for seed, name in enumerate(("formal", "german", "pirate")):
        (random_adapter(model, seed) ** 0.3).save(tmp_path / "adapters" / name)
    return tmp_path / "adapters"


def run(*arguments) -> dict:
    result = CliRunner().invoke(app, ["adapter", *map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_diff_interpolate_mean_and_split_write_adapters(folder, tmp_path, close):
    formal, german = Adapter.load(folder / "formal"), Adapter.load(folder / "german")
    run("diff", folder / "german", folder / "formal", "-o", tmp_path / "diff")
    close(formal.then(Adapter.load(tmp_path / "diff")).a, german.a)
    run("interpolate", folder / "formal", folder / "german", "--share", 0.25, "-o", tmp_path / "way")
    close(Adapter.load(tmp_path / "way").a, algebra.interpolate(formal, german, 0.25).a)
    arguments = (folder / "formal", folder / "german", "--weight", 3, "--weight", 1)
    run("mean", *arguments, "-o", tmp_path / "mean")
    close(Adapter.load(tmp_path / "mean").a, (formal**0.75).then(german**0.25).a)
    made = run("split", folder / "formal", "--by", "module", "-o", tmp_path / "parts")
    whole = algebra.union(Adapter.load(path) for path in made.values())
    close(whole.b, formal.b)


def test_distance_cluster_and_conflicts_report(folder):
    names = ["formal", "german", "pirate"]
    facts = run("distance", folder)
    assert facts["names"] == names
    assert facts["distances"] == algebra.distances([Adapter.load(folder / name) for name in names]).tolist()
    merges = run("cluster", folder)["merges"]
    assert len(merges) == 2
    assert merges[0]["distance"] == min(facts["distances"][i][j] for i in range(3) for j in range(i))
    rows = run("conflicts", folder / "formal", folder / "german")["layers"]
    assert rows == sorted(rows, key=lambda row: -row["share"])
    assert 0.2 < rows[0]["share"] < 0.8


def test_tables_are_printed_for_people(folder):
    for verb in ("distance", "cluster"):
        assert "formal" in CliRunner().invoke(app, ["adapter", verb, str(folder)]).output
    shown = CliRunner().invoke(app, ["adapter", "conflicts", str(folder / "formal"), str(folder / "german")])
    assert "opposed" in shown.output


def test_one_adapter_has_no_distances(folder):
    with pytest.raises(RoadkitError, match="at least two adapters, got 1"):
        CliRunner().invoke(app, ["adapter", "distance", str(folder / "formal")], catch_exceptions=False)
