from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import roadkit

PACKAGE = Path(roadkit.__file__).parent

# The contract: names that others rely on, with the parameters that they pass by name.
CONTRACT = {
    "Adapter": None,
    "Bank": {"model", "adapters"},
    "Completion": None,
    "Engine": {"model", "tokenizer", "adapters", "max_batch"},
    "Request": None,
    "RoadkitError": None,
    "attached": {"model", "adapter"},
    "compose": {"expression", "adapters"},
    "disable_peft": set(),
    "enable_peft": set(),
    "merge": {"model", "adapter"},
    "rotate_rows": {"h", "rows", "a", "b", "group_size"},
    "unmerge": {"model", "adapter"},
}


def run(script: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_costs_next_to_nothing():
    script = "import sys, json; before = set(sys.modules); import roadkit; print(json.dumps(sorted(set(sys.modules) - before)))"
    imported = json.loads(run(script))
    assert {name.partition(".")[0] for name in imported} <= {"roadkit", *sys.stdlib_module_names}
    assert [name for name in imported if name.startswith("roadkit")] == ["roadkit"]


@pytest.mark.parametrize("name", CONTRACT)
def test_contract_names_are_there_as_written(name):
    value = getattr(roadkit, name)
    assert value is getattr(roadkit, name)
    assert name in dir(roadkit)
    assert inspect.getdoc(value), f"{name} has no docstring"
    if CONTRACT[name] is not None:
        assert CONTRACT[name] <= set(inspect.signature(value).parameters)


def test_everything_public_is_in_the_contract():
    assert set(roadkit.__all__) == set(CONTRACT)


def test_methods_of_the_contract():
    assert {"load", "save", "then", "inverse", "__pow__"} <= set(dir(roadkit.Adapter))
    assert {"from_pretrained", "generate", "stream", "submit", "add_adapter", "remove_adapter"} <= set(
        dir(roadkit.Engine)
    )
    assert {"rows", "add", "remove", "close"} <= set(dir(roadkit.Bank))
    fields = {
        "prompt", "adapter", "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
        "no_repeat_ngram_size", "seed", "stop", "logprobs", "min_tokens", "ignore_eos",
    }  # fmt: skip
    assert fields <= set(roadkit.Request.model_fields)
    assert roadkit.Request.model_fields["temperature"].default == 0.0
    assert {"text", "token_ids", "finish_reason", "logprobs"} <= set(roadkit.Completion.model_fields)


def test_type_checkers_see_the_same_names():
    """The lazy table and the imports under TYPE_CHECKING are written twice, so they are compared."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == roadkit._HOMES


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'roadkit' has no attribute 'Adaptor'"):
        roadkit.Adaptor  # type: ignore[attr-defined]  # noqa: B018


def test_version_is_the_projects():
    project = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text())["project"]
    assert roadkit.__version__ == project["version"]


def test_every_error_is_a_roadkit_error_and_a_value_error():
    from roadkit import errors

    found = [value for value in vars(errors).values() if inspect.isclass(value)]
    assert len(found) > 5
    assert all(issubclass(error, roadkit.RoadkitError) and issubclass(error, ValueError) for error in found)


def test_every_module_says_what_it_is_for():
    for path in PACKAGE.rglob("*.py"):
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        assert docstring, f"{path.relative_to(PACKAGE)} has no docstring"
