"""README's Python runs as printed, against the real model where it names it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
TREE = README.partition("## Where things are\n\n```\n")[2].partition("```")[0]


@pytest.mark.model
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("block", BLOCKS, ids=[f"block{i}" for i in range(len(BLOCKS))])
def test_readme_example_runs(block, tmp_path, monkeypatch, random_adapter, capsys):
    """In a folder with adapters under the names that the examples use; what `make demo` trains has the same shape."""
    if "adapters/" in block:
        from roadkit import models

        model = models.load_causal("smollm2")
        for seed, name in enumerate(("formal", "pirate")):
            random_adapter(model, seed, group_size=64, layers=("q_proj",)).save(tmp_path / "adapters" / name)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})  # the example itself asserts what it claims


def test_readme_starts_with_the_make_targets():
    assert README.startswith("# roadkit\n")
    for target in ("make demo", "make test"):
        assert target in README


def test_the_tree_names_every_room_and_nothing_else():
    package = ROOT / "src" / "roadkit"
    tree = re.findall(r"^( *)([\w./]+) +(\S.*)$", TREE, flags=re.MULTILINE)
    assert len(tree) == len(TREE.splitlines()), "a line of the tree has no purpose"
    named = {(package if indent else ROOT) / name: purpose for indent, name, purpose in tree}
    assert not [path for path in named if not path.exists()]
    for path, purpose in named.items():  # rooms inside a room, as in `api/ access/`
        rooms = re.findall(r"(\w+)/", purpose)
        assert not [room for room in rooms if not any((base / room).is_dir() for base in (path, ROOT))], purpose
    rooms = {path for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    files = {path for path in package.glob("*.py") if not path.name.startswith("__")}
    assert rooms | files <= set(named), "README's tree leaves something out"


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)", README)
    assert not [link for link in links if not link.startswith("https://") and not (ROOT / link).exists()]
