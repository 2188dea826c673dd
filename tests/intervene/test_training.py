from __future__ import annotations

import pytest
import torch

from roadkit.errors import AlgebraError, ModelError, RecipeError
from roadkit.intervene import Positions, Subspace, intervened
from roadkit.intervene.training import RotationEdit, TaskRow, encode_tasks, losses_of, train, train_edits

UPPER, LOWER = Subspace.split(64, 2, group_size=16)
SITE = "model.layers.0"
LAST = Positions(last=1)


def rows(count: int, task: str, answer: int, seed: int = 0) -> list[TaskRow]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        prompt = torch.randint(3, 250, (6,), generator=generator).tolist()
        made.append(TaskRow(task, [*prompt, answer, answer + 1], [-100] * 6 + [answer, answer + 1]))
    return made


def gradients(model, examples) -> tuple[torch.Tensor, torch.Tensor]:
    edit = RotationEdit([UPPER, LOWER])
    active = [[row.task == "up", row.task == "down"] for row in examples]
    model.requires_grad_(False)
    losses_of(model, {(SITE, LAST): edit}, examples, active=active).sum().backward()
    assert edit.theta.grad is not None
    assert edit.alpha.grad is not None
    return edit.theta.grad, edit.alpha.grad


def test_a_subspace_gets_gradient_from_its_own_examples_only(tiny_llama):
    model = tiny_llama()
    up, down = rows(2, "up", 40), rows(3, "down", 90, seed=1)
    own = {"up": slice(0, 16), "down": slice(16, 32)}  # pairs of each half
    alone = {"up": gradients(model, up), "down": gradients(model, down)}
    mixed = gradients(model, up + down)
    for task, pairs in own.items():
        others = own["down" if task == "up" else "up"]
        for part, whole in zip(alone[task], mixed, strict=True):
            assert not part[others].any(), "an example moved another task's pairs"
            assert part[pairs].any()
            torch.testing.assert_close(part[pairs], whole[pairs], rtol=1e-4, atol=1e-7)


def test_two_tasks_learn_at_once_and_the_model_is_given_back(tiny_llama):
    model = tiny_llama()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    examples = rows(8, "up", 40) + rows(8, "down", 90, seed=1)
    learnt = train(model, examples, subspaces={"up": UPPER, "down": LOWER}, sites=[SITE], epochs=30, learning_rate=3e-2)
    assert learnt.losses[-1] < learnt.losses[0] - 0.5
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        for task, answer in (("up", 40), ("down", 90)):
            example = next(row for row in examples if row.task == task)
            ids = torch.tensor([example.input_ids[:6]])
            plain = model(ids).logits[0, -1].log_softmax(-1)[answer]
            with intervened(model, learnt.intervention.select(task)):
                tuned = model(ids).logits[0, -1].log_softmax(-1)[answer]
            assert tuned > plain + 0.3


def test_training_is_what_serving_applies(tiny_llama):
    """The loss under the trained module equals the loss under the saved value."""
    model = tiny_llama()
    examples = rows(4, "up", 40)
    edit = RotationEdit([UPPER, LOWER])
    with torch.no_grad():
        edit.theta.normal_()
        edit.alpha.normal_(1, 0.2)
    from roadkit.adapter import Adapter
    from roadkit.intervene import Intervention

    rotation = Adapter.from_parameters({SITE: (edit.theta, edit.alpha)}, variant="road_1", group_size=16)
    tasks = Intervention(rotation, LAST, {"up": UPPER, "down": LOWER})
    with torch.no_grad():
        trained = losses_of(model, {(SITE, LAST): edit}, examples, active=[[True, False]] * 4)
        with intervened(model, tasks.select("up"), num_prompt=[6] * 4):
            served = losses_of(model, {}, examples, active=[[False, False]] * 4)
    torch.testing.assert_close(trained, served)


def test_the_same_seed_gives_the_same_angles(tiny_llama):
    examples = rows(6, "up", 40)
    options = {"tasks": ["up"], "epochs": 2, "batch_size": 4}
    first, second = RotationEdit([UPPER]), RotationEdit([UPPER])
    train_edits(tiny_llama(), {(SITE, LAST): first}, examples, **options)
    train_edits(tiny_llama(), {(SITE, LAST): second}, examples, **options)
    assert torch.equal(first.theta, second.theta)


def test_bad_input_is_named(tiny_llama):
    model, examples = tiny_llama(), rows(2, "up", 40)
    with pytest.raises(AlgebraError, match="'up' and 'down' overlap"):
        train(model, examples, subspaces={"up": UPPER, "down": UPPER}, sites=[SITE])
    with pytest.raises(RecipeError, match="no subspace for 'up'; there are down"):
        train(model, examples, subspaces={"down": UPPER}, sites=[SITE])
    with pytest.raises(ModelError, match="no module"):
        train(model, examples, subspaces={"up": UPPER}, sites=["model.layers.9"])
    with pytest.raises(ValueError, match="its last 7"):
        train(model, examples, subspaces={"up": UPPER}, sites=[SITE], positions="last:7")


def test_a_column_names_each_rows_subspace(tiny_tokenizer, tiny_llama, tmp_path):
    import json

    from roadkit.train import Recipe
    from roadkit.train.data.tables import read_table

    data = tmp_path / "mixed.jsonl"
    lines = [{"prompt": f"the quick {i}", "completion": "brown fox", "task": "ab"[i % 2]} for i in range(6)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tiny_llama(vocab_size=384).save_pretrained(tmp_path / "model")
    recipe = Recipe(model=str(tmp_path / "model"), data=str(data), output=str(tmp_path / "out"), max_length=64)
    encoded = encode_tasks(recipe, tiny_tokenizer, column="task", table=read_table(str(data)))
    assert [row.task for row in encoded] == ["a"] * 3 + ["b"] * 3
    for row in encoded:
        assert 0 < row.num_prompt < len(row.input_ids) == len(row.labels)
        assert tiny_tokenizer.decode(row.input_ids[: row.num_prompt]).startswith("the quick")
