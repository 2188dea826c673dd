"""What stands around the code agrees with it: CONTRIBUTING, CITATION, the forms for issues, CI and pre-commit."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FORMS = ROOT / ".github" / "ISSUE_TEMPLATE"


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("citation-file-format", "CITATION.cff"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/bug.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/question.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("github-workflows", ".github/workflows/ci.yml"),
    ],
)
def test_files_meet_their_schemas(schema, file):
    tool = Path(sys.executable).parent / "check-jsonschema"
    command = [str(tool), "--builtin-schema", f"vendor.{schema}", str(ROOT / file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_citation_names_this_version_and_the_paper():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert citation["repository-code"] == project["urls"]["Homepage"]
    assert citation["references"][0]["url"] == project["urls"]["Paper"]


def test_ci_runs_the_script_that_people_run():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert [step["run"] for step in workflow["jobs"]["run"]["steps"] if "run" in step] == [".ci/run"]
    called = re.findall(r"^make ([\w-]+)$", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert called == ["test", "test-vllm", "test-studio", "docs"]
    assert set(called) <= targets


def test_pre_commit_checks_what_make_test_checks():
    rule = re.search(r"^test:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert rule is not None
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in rule[1].splitlines()]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == commands[:-1]  # the last one is pytest


def test_contributing_names_files_and_targets_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = {
        name.rstrip("/") for name in re.findall(r"`([\w./]+(?:/|\.py|\.c|\.md|\.txt))`", text) if "NAME" not in name
    }
    assert len(named) > 40
    folders = [ROOT, *(path for path in (ROOT / "src" / "roadkit").rglob("*") if path.is_dir())]
    folders += [ROOT / "src" / "roadkit", ROOT / "tests" / "kernels", ROOT / "tests" / "server" / "api"]
    assert not [name for name in named if not any((folder / name).exists() for folder in folders)]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", text)) <= targets


def test_contributing_knows_every_room():
    rooms = {path.name for path in (ROOT / "src" / "roadkit").iterdir() if path.is_dir() and path.name[0] not in "._"}
    rooms |= {path.name for path in (ROOT / "src" / "roadkit" / "server").iterdir() if path.is_dir()}
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert not [room for room in rooms - {"data", "__pycache__"} if f"{room}/`" not in text]
