"""`--dry-run`: what is learnt, how long rows are, how long it would take; and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from roadkit.errors import RecipeError
from roadkit.train import preview, run
from roadkit.train.runs import cost


def test_preview_shows_what_is_learnt(make_recipe):
    recipe = make_recipe(max_steps=None, epochs=2, eval_fraction=0.25)
    found = preview(recipe)
    assert found.examples[0] == (
        ("<|im_start|>user\nreally what is 1?<|im_end|>\n<|im_start|>assistant\n", False),
        ("it is 1!<|im_end|>", True),
    )
    assert (found.rows, found.held_out_rows, found.num_steps) == (9, 3, 6)
    assert found.format == "prompt_completion"
    assert 0 < found.loss_share < 0.5
    assert found.trainable == run(make_recipe()).trainable
    assert found.seconds is not None
    assert found.seconds > 0
    assert found.lengths[5] <= found.lengths[50] <= found.lengths[100]


def test_preview_writes_nothing(make_recipe):
    recipe = make_recipe()
    preview(recipe)
    assert not Path(recipe.output).exists()
    assert not recipe.run_dir.exists()


def test_preview_leaves_a_loaded_model_as_it_was(make_recipe, llama_folder):
    from roadkit import models

    model, tokenizer = models.load_causal(llama_folder), models.load_tokenizer(llama_folder)
    before = [name for name, _ in model.named_modules()]
    preview(make_recipe(), model=model, tokenizer=tokenizer, timed=False)
    assert [name for name, _ in model.named_modules()] == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_loss_bearing_text_is_marked_without_colours(make_recipe):
    console = Console(width=100, record=True, force_terminal=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(preview(make_recipe(), timed=False))
    console.file.close()
    text = console.export_text()
    assert "«it is 0<|im_end|>»" in text
    assert "prompt_completion (columns prompt, completion)" in text
    assert "trained" in text


def test_preview_refuses_what_a_run_would(make_recipe):
    with pytest.raises(RecipeError, match="candidates: "):
        preview(make_recipe(target_modules="nothing"))


def test_the_timed_step_saves_memory_as_the_run_does(make_recipe, monkeypatch):
    saves = []
    monkeypatch.setattr(cost, "_batch_seconds", lambda data, model: saves.append(model.is_gradient_checkpointing) or 1)
    for wanted in (True, False):
        preview(make_recipe(gradient_checkpointing=wanted))
    assert saves == [True, False]


@pytest.mark.parametrize("changes", [{"packing": True, "max_length": 128}, {"bf16": True}, {"lora": {"r": 2}}])
def test_preview_of_other_recipes(make_recipe, changes):
    seconds = preview(make_recipe(**changes)).seconds
    assert seconds is not None
    assert seconds > 0
