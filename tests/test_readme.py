"""README's Python runs as printed, against the real model where it names it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


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


def test_readme_names_the_make_targets_and_every_room():
    text = (ROOT / "README.md").read_text()
    assert text.startswith("# roadkit\n")
    for target in ("make demo", "make test"):
        assert target in text
    rooms = {path.name for path in (ROOT / "src" / "roadkit").iterdir() if path.is_dir() and path.name[0] not in "._"}
    files = {path.name for path in (ROOT / "src" / "roadkit").glob("*.py")} - {"__init__.py", "__main__.py"}
    missing = [name for name in (rooms | files) if name not in text]
    assert not missing, f"README's tree leaves out {missing}"
