"""EleutherAI's lm-evaluation-harness: an adapter's folder as `peft=`, scored like the model it is merged into."""

from __future__ import annotations

import json

import pytest
import torch

import roadkit as rk
from roadkit.modules import linear_layers

lm_eval = pytest.importorskip("lm_eval")

TASK = """
task: colours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: multiple_choice
doc_to_text: "The {{{{thing}}}} is"
doc_to_choice: [" red", " green", " blue"]
doc_to_target: label
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def world(tiny_llama, tiny_tokenizer, tmp_path_factory):
    """A model, an adapter that changes what it says, and a task, all as folders."""
    root = tmp_path_factory.mktemp("harness")
    model = tiny_llama(vocab_size=384)
    model.save_pretrained(root / "model")
    tiny_tokenizer.save_pretrained(root / "model")
    torch.manual_seed(0)
    drawn = {
        name: (torch.randn(layer.out_features // 2) * 0.5, 1 + 0.1 * torch.randn(layer.out_features // 2))
        for name, layer in linear_layers(model).items()
        if name != "lm_head"
    }
    adapter = rk.Adapter.from_parameters(drawn, variant="road_1", group_size=16)
    adapter.save(root / "adapter")
    rk.merge(model, adapter)
    model.save_pretrained(root / "merged")
    tiny_tokenizer.save_pretrained(root / "merged")
    things = ["apple", "sky", "grass", "rose", "sea", "leaf", "brick", "lake"]
    rows = [{"thing": thing, "label": i % 3} for i, thing in enumerate(things)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "tasks").mkdir()
    (root / "tasks" / "colours.yaml").write_text(TASK.format(rows=root / "rows.jsonl"))
    return root


def loglikelihoods(root, arguments: str) -> list[list[float]]:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(root / "tasks"), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model="hf", model_args=arguments, tasks=["colours"], task_manager=manager, device="cpu", batch_size=4,
        bootstrap_iters=0,
    )  # fmt: skip
    assert "acc,none" in found["results"]["colours"]
    return [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in found["samples"]["colours"]]


def test_an_adapters_folder_is_scored_as_the_merged_model(world):
    base, tuned, merged = (
        loglikelihoods(world, f"dtype=float32,{options}")
        for options in (
            f"pretrained={world / 'model'}",
            f"pretrained={world / 'model'},peft={world / 'adapter'}",
            f"pretrained={world / 'merged'}",
        )
    )
    torch.testing.assert_close(torch.tensor(tuned), torch.tensor(merged), rtol=0, atol=1e-3)
    assert (torch.tensor(tuned) - torch.tensor(base)).abs().max() > 0.1
