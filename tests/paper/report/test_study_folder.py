"""The committed studies' reports and tables are those of their ledgers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from paper.ledger import Ledger
from paper.report.study_folder import write_study

DATA = Path(__file__).resolve().parents[3] / "docs" / "data"


@pytest.mark.parametrize("study", ["composition", "merging"])
def test_the_committed_folder_agrees_with_its_ledger(study, tmp_path):
    shutil.copy(DATA / study / "ledger.jsonl", tmp_path)
    written = write_study(Ledger(tmp_path / "ledger.jsonl"))
    texts = [path for path in written if path.suffix != ".png"]
    assert len(texts) >= 2
    for path in texts:
        assert path.read_bytes() == (DATA / study / path.name).read_bytes(), path.name
