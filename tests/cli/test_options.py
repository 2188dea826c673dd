"""How adapters are named on a command line."""

import pytest

from roadkit.cli.options import named_adapters
from roadkit.errors import RoadkitError


def test_adapters_are_named_by_folder_or_by_hand(folder):
    both = {"formal": str(folder / "formal"), "german": str(folder / "german")}
    assert named_adapters([str(folder)]) == both
    assert named_adapters([str(folder / "formal")]) == {"formal": both["formal"]}
    assert named_adapters([f"polite={folder}/formal"]) == {"polite": both["formal"]}


def test_two_adapters_of_one_name_are_refused(folder, tmp_path):
    (tmp_path / "other").mkdir()
    (folder / "german").rename(tmp_path / "other" / "formal")
    with pytest.raises(RoadkitError, match="two adapters are called 'formal'"):
        named_adapters([str(folder), str(tmp_path / "other")])
