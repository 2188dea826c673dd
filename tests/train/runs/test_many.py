"""Many adapters in one run are what runs of their own would have made."""

from __future__ import annotations

import json

import pytest
import torch

import roadkit as rk
from roadkit import models
from roadkit.errors import RecipeError
from roadkit.train import Recipe, run, run_many
from roadkit.train.runs import joint_training, passes

ROWS = [
    {"adapter": name, "prompt": f"{'well ' * (i % 4)}say {i}", "completion": f"{name} {i}" * (1 + i % 2)}
    for i in range(10)
    for name in ("acme", "beta", "café"[:3])
    if not (name == "beta" and i % 2)
]


@pytest.fixture
def many_recipe(make_recipe, write_rows, tmp_path):
    def make(rows=ROWS, **changes):
        data = write_rows(rows, "many.jsonl")
        values = {"data": data, "output": str(tmp_path / "adapters"), "max_steps": None, "epochs": 2}
        return make_recipe(**values | changes)

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"group_by_length": True, "variant": "road_2"}, marks=pytest.mark.slow),
        {"gradient_accumulation": 2, "batch_size": 2, "weight_decay": 0.1, "schedule": "cosine"},
        pytest.param(
            {"gradient_checkpointing": True, "batch_size": 3, "max_steps": 5, "schedule": "constant"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["plain", "grouped", "accumulated", "checkpointed"],
)
def test_adapters_equal_those_of_separate_runs(many_recipe, write_rows, tmp_path, changes, monkeypatch):
    monkeypatch.setattr(passes, "MAX_TOKENS", 400)  # several passes a step
    recipe = many_recipe(**changes)
    result = run_many(recipe)
    assert result.adapters.keys() == {"acme", "beta", "caf"}
    for name, trained in result.adapters.items():
        rows = write_rows([row for row in ROWS if row["adapter"] == name], f"{name}.jsonl")
        alone = run(Recipe(**recipe.model_dump() | {"data": rows, "output": str(tmp_path / "alone" / name)}))
        assert trained.steps == alone.steps
        assert trained.metrics["train_loss"] == pytest.approx(alone.metrics["train_loss"], rel=1e-4)
        together, separate = rk.Adapter.load(trained.adapter), rk.Adapter.load(alone.adapter)
        torch.testing.assert_close(together.a, separate.a, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.b, separate.b, rtol=1e-4, atol=1e-4)
        assert together.base == separate.base


def test_an_adapters_rows_are_cut_if_they_are_more_than_a_pass_holds(many_recipe, tmp_path, monkeypatch):
    recipe = many_recipe(batch_size=4, gradient_accumulation=2, max_steps=3)
    whole = run_many(recipe).adapters
    groups, real = [], passes.passes

    def watched(batches):
        for group in real(batches):
            groups.append(group)
            yield group

    monkeypatch.setattr(passes, "MAX_TOKENS", 120)
    monkeypatch.setattr(joint_training, "passes", watched)
    cut = run_many(Recipe(**recipe.model_dump() | {"output": str(tmp_path / "cut")})).adapters
    counts = [(sum(len(batch.rows) for batch in group), max(batch.width for batch in group)) for group in groups]
    assert all(rows == 1 or rows * width <= 120 for rows, width in counts)
    assert len(groups) > 3 * len(whole), "more passes than steps and adapters"
    for name, trained in cut.items():
        assert trained.tokens == whole[name].tokens
        assert trained.metrics["train_loss"] == pytest.approx(whole[name].metrics["train_loss"], rel=1e-4)
        one, other = rk.Adapter.load(trained.adapter), rk.Adapter.load(whole[name].adapter)
        torch.testing.assert_close(one.a, other.a, rtol=1e-4, atol=1e-4)


def test_adapters_end_at_their_own_steps(many_recipe):
    result = run_many(many_recipe())
    assert {name: trained.steps for name, trained in result.adapters.items()} == {"acme": 6, "beta": 4, "caf": 6}
    assert result.steps == 6
    assert result.tokens == sum(trained.tokens for trained in result.adapters.values())


def test_loaded_model_is_left_as_it_was(many_recipe, llama_folder):
    model, tokenizer = models.load_causal(llama_folder), models.load_tokenizer(llama_folder)
    modules, state = list(model.named_modules()), {k: v.clone() for k, v in model.state_dict().items()}
    run_many(many_recipe(max_steps=1), model=model, tokenizer=tokenizer)
    assert list(model.named_modules()) == modules
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_one_that_fails_leaves_the_others_alone(many_recipe, monkeypatch):
    recipe = many_recipe(max_steps=3)
    expected = {name: rk.Adapter.load(trained.adapter) for name, trained in run_many(recipe).adapters.items()}
    real, calls = joint_training.cross_entropy, []

    def poisoned(logits, targets, reduction):
        losses = real(logits, targets, reduction=reduction)
        calls.append(1)
        last = torch.arange(len(losses)) == len(losses) - 1  # a token of the widest adapter's last row
        return losses * torch.where(last, torch.nan, 1.0) if len(calls) == 2 else losses

    monkeypatch.setattr(joint_training, "cross_entropy", poisoned)
    result = run_many(recipe)
    (name,) = result.failed
    assert result.failed[name].startswith("the loss became nan at step 2, learning rate")
    assert expected.keys() - {name} == result.adapters.keys()
    for other, trained in result.adapters.items():
        torch.testing.assert_close(rk.Adapter.load(trained.adapter).a, expected[other].a, rtol=1e-5, atol=1e-5)


def test_all_that_fail_are_an_error(many_recipe):
    with pytest.raises(RecipeError, match=r"no adapter came through: acme: the (loss|gradient) became"):
        run_many(many_recipe(learning_rate=1e30, max_grad_norm=0, warmup=0))


def test_column_can_have_another_name(many_recipe):
    rows = [{"customer": 7, "prompt": "a", "completion": "b"}]
    assert run_many(many_recipe(rows, columns={"adapter": "customer"}, max_steps=1)).adapters.keys() == {"7"}


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([{"prompt": "a", "completion": "b"}], {}, r"many\.jsonl, row 1: no column 'adapter'"),
        ([{"adapter": "../x", "prompt": "a", "completion": "b"}], {}, r"'\.\./x' is no adapter's name"),
        (ROWS, {"lora": {"r": 2}, "resume": True}, "lora, resume needs a run for each adapter"),
        (ROWS, {"task": "regression"}, "task regression needs a run for each adapter"),
    ],
)
def test_what_cannot_be_is_refused(many_recipe, rows, changes, message):
    with pytest.raises(RecipeError, match=message):
        run_many(many_recipe(rows, **changes))


def test_every_adapter_has_its_card_and_figures(many_recipe):
    result = run_many(many_recipe(max_steps=2))
    folder = result.adapters["beta"].adapter
    assert json.loads((folder / "training.json").read_text())["examples"] == 5
    assert "# beta" in (folder / "README.md").read_text()
