"""An output is written in one step, over nothing but an older one."""

from __future__ import annotations

from pathlib import Path

import pytest

from roadkit.errors import RecipeError
from roadkit.train import run


def test_full_disk_leaves_the_old_adapter(make_recipe, monkeypatch):
    recipe = make_recipe(max_steps=1)
    run(recipe)
    before = (Path(recipe.output) / "adapter_model.safetensors").read_bytes()

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RecipeError, match="No space left on device; what was there before is untouched"):
        run(recipe)
    assert (Path(recipe.output) / "adapter_model.safetensors").read_bytes() == before
    assert list(Path(recipe.output).parent.glob(".adapter*")) == []


def test_output_that_holds_other_things_is_refused_before_training(make_recipe, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    with pytest.raises(RecipeError, match=r"holds other things \(thesis\.txt\); name a new folder"):
        run(make_recipe(output=str(tmp_path / "home")))
    with pytest.raises(RecipeError, match="is a file"):
        run(make_recipe(output=str(tmp_path / "home" / "thesis.txt")))
