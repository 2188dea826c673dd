"""`roadkit train` and `roadkit eval` from the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from roadkit.cli.eval import evaluate
from roadkit.cli.train import train
from roadkit.errors import RecipeError
from roadkit.train.recipe import dump_recipe


@pytest.fixture
def app():
    made = typer.Typer()
    made.command()(train)
    made.command("eval")(evaluate)
    return made


@pytest.fixture
def recipe_file(make_recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(make_recipe(eval_fraction=0.25)))
    return str(path)


def test_train_then_eval_print_json_last(app, recipe_file):
    trained = CliRunner().invoke(app, ["train", recipe_file, "max_steps=3", "--json"], catch_exceptions=False)
    facts = json.loads(trained.stdout.splitlines()[-1])
    assert facts["steps"] == 3
    assert "step 3/3" in trained.stderr
    compared = CliRunner().invoke(app, ["eval", recipe_file, "--json"], catch_exceptions=False)
    rows = json.loads(compared.stdout.splitlines()[-1])["rows"]
    assert rows["tuned"]["loss"] == pytest.approx(facts["metrics"]["eval_loss"], rel=1e-4)


def test_many_prints_every_adapter(app, make_recipe, write_rows, tmp_path):
    rows = [{"adapter": f"a{i % 2}", "prompt": f"{i}", "completion": "x"} for i in range(6)]
    path = tmp_path / "many.yaml"
    path.write_text(dump_recipe(make_recipe(data=write_rows(rows), output=str(tmp_path / "out"), max_steps=2)))
    done = CliRunner().invoke(app, ["train", str(path), "--many", "--json"], catch_exceptions=False)
    assert json.loads(done.stdout.splitlines()[-1])["adapters"].keys() == {"a0", "a1"}
    assert "a1: 2 steps, loss" in done.stderr


def test_dry_run_shows_and_writes_nothing(app, recipe_file, make_recipe):
    shown = CliRunner().invoke(app, ["train", recipe_file, "--dry-run"], catch_exceptions=False)
    assert "«it is" in shown.stdout
    assert "held out" in shown.stdout
    facts = CliRunner().invoke(app, ["train", recipe_file, "--dry-run", "--json"], catch_exceptions=False).stdout
    assert json.loads(facts.splitlines()[-1])["format"] == "prompt_completion"


def test_mistakes_reach_the_command_line_as_they_are(app, recipe_file):
    with pytest.raises(RecipeError, match="unknown key 'sede'"):
        CliRunner().invoke(app, ["train", recipe_file, "sede=1"], catch_exceptions=False)


def test_commands_load_nothing_heavy():
    code = "import sys, roadkit.cli.train, roadkit.cli.eval; print(*sys.modules)"
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"torch", "transformers", "pydantic", "rich.console"} & set(heavy.stdout.split())
