"""EleutherAI's lm-evaluation-harness asks the server through its completions client, an expression as the model."""

from __future__ import annotations

import json

import pytest

lm_eval = pytest.importorskip("lm_eval")

TASK = """
task: foxes
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{start}}}}"
doc_to_choice: [" brown", " lazy", " fox"]
doc_to_target: label
metric_list:
  - metric: acc
"""


def loglikelihoods(folder, model: str, arguments: str) -> list[list[float]]:
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model=model, model_args=arguments, tasks=["foxes"], batch_size=1, device="cpu", bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )  # fmt: skip
    return [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in found["samples"]["foxes"]]


def test_the_servers_likelihoods_are_the_models(server, tiny_folder, made, tmp_path):
    rows = [{"start": text, "label": i % 3} for i, text in enumerate(("the quick", "over the", "a lazy", "jumps"))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "foxes.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"))
    api = f"base_url={server.url}/v1/completions,tokenizer={tiny_folder},num_concurrent=1,max_length=512"
    base = loglikelihoods(tmp_path, "local-completions", f"model=tiny,{api}")
    tuned = loglikelihoods(tmp_path, "local-completions", f"model=quick,{api}")
    undone = loglikelihoods(tmp_path, "local-completions", f"model=quick - quick,{api}")
    reference = f"pretrained={tiny_folder},dtype=float32,add_bos_token=False"
    for found, expected in (
        (base, loglikelihoods(tmp_path, "hf", reference)),
        (tuned, loglikelihoods(tmp_path, "hf", f"{reference},peft={made(1)}")),
    ):
        assert [pytest.approx(row, abs=2e-3) for row in expected] == found
    assert base != tuned
    assert [pytest.approx(row, abs=2e-3) for row in base] == undone
