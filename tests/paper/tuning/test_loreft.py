"""LoReFT as published: where it acts, that it learns, and that its answers are those of a loop by hand."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from paper.report.tables import result_tables
from paper.runs.instruction import INSTRUCT_METHODS, run_instruct
from paper.runs.reasoning import run_suite
from paper.tuning.decoders import BASE, LOREFT, TunedDecoder, prompt_of
from paper.tuning.loreft import LOREFT_INSTRUCT, LOREFT_REASONING, LoreftEdit, answer_with_edits, published_edits
from roadkit import models
from roadkit.errors import RequestError
from roadkit.intervene import Positions
from roadkit.intervene.training import TaskRow, train_edits
from roadkit.train.data.tables import Table

PROMPTS = ["Is 1 even?", "Tell me a little more about the number 22."]


def test_loreft_is_its_formula_with_each_tasks_own_ranks():
    edit: Any = LoreftEdit(12, [2, 3])
    h = torch.randn(4, 12)
    r, w, c = edit.rotate.weight, edit.source.weight, edit.source.bias
    torch.testing.assert_close(r @ r.T, torch.eye(5), rtol=0, atol=1e-5)
    whole = h + (h @ w.T + c - h @ r.T) @ r
    torch.testing.assert_close(edit(h, torch.ones(4, 2, dtype=torch.bool)), whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(edit(h, torch.zeros(4, 2, dtype=torch.bool)), h)
    first = edit(h, torch.tensor([[True, False]] * 4))
    torch.testing.assert_close(first @ r[2:].T, h @ r[2:].T, rtol=1e-4, atol=1e-5)  # the other task's ranks keep h


@pytest.mark.parametrize(("depth", "layers"), [(32, [3, 9, 18, 24]), (30, [2, 8, 16, 22]), (2, [0, 1])])
def test_the_published_layers_are_spread_over_the_models_depth(tiny_llama, depth, layers):
    edits = published_edits(tiny_llama(num_hidden_layers=depth), LOREFT_INSTRUCT)
    for end in (Positions(first=5), Positions(last=5)):
        assert [name for name, where in edits if where == end] == [f"model.layers.{layer}" for layer in layers]
    for edit in edits.values():
        assert sum(parameter.numel() for parameter in edit.parameters()) == 2 * 4 * 64 + 4


def test_for_reasoning_all_blocks_are_edited_and_both_ends_share_an_edit(tiny_llama):
    edits = published_edits(tiny_llama(num_hidden_layers=3), LOREFT_REASONING)
    assert [name for name, where in edits if where == Positions(first=7)] == [f"model.layers.{i}" for i in range(3)]
    for name, where in edits:
        assert edits[name, where] is edits[name, Positions(last=7)]
    parameters = torch.nn.ModuleList(edits.values()).parameters()
    assert sum(parameter.numel() for parameter in parameters) == 3 * (2 * 8 * 64 + 8)


def test_a_step_in_parts_is_the_step_at_once(tiny_llama):
    rows = [TaskRow("", list(range(3, 12 + i)), [-100] * 7 + list(range(10, 12 + i))) for i in range(1, 5)]
    learnt = []
    for at_once in (None, 3):
        model = tiny_llama()
        torch.manual_seed(0)
        edits = published_edits(model, LOREFT_REASONING)
        losses = train_edits(model, edits, rows, tasks=[""], epochs=3, batch_size=4, at_once=at_once)
        learnt.append((losses, [parameter.detach() for parameter in torch.nn.ModuleList(edits.values()).parameters()]))
    (one, expected), (other, actual) = learnt
    assert len(one) == 3 and one == pytest.approx(other, rel=1e-4)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def by_hand(model, tokenizer, edits, prompt: str, new_tokens: int) -> str:
    """One prompt alone, without a cache: every pass holds all tokens, and edits those of the prompt's ends."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    length = ids.shape[1]
    columns = {Positions(first=5): slice(0, 5), Positions(last=5): slice(length - 5, length)}

    def hook(edit, chosen):
        def replace(module, args, output):
            h = output[0] if isinstance(output, tuple) else output
            new, r = h.clone(), edit.rotate.weight
            new[0, chosen] = h[0, chosen] + (edit.source(h[0, chosen]) - h[0, chosen] @ r.T) @ r
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return replace

    handles = [
        model.get_submodule(name).register_forward_hook(hook(edit, columns[where]))
        for (name, where), edit in edits.items()
    ]
    with torch.no_grad():
        for _ in range(new_tokens):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
            if ids[0, -1] in (model.config.eos_token_id, tokenizer.eos_token_id):
                break
    for handle in handles:
        handle.remove()
    return tokenizer.decode(ids[0, length:], skip_special_tokens=True)


def test_answers_are_those_of_a_loop_by_hand(decoder):
    model, tokenizer = models.load_causal(decoder.model), models.load_tokenizer(decoder.model)
    torch.manual_seed(0)
    edits = published_edits(model, LOREFT_INSTRUCT)
    prompts = [prompt_of(text) for text in PROMPTS]
    with torch.no_grad():
        for edit in edits.values():
            edit.source.bias.normal_(0, 3)
    answers = answer_with_edits(model, tokenizer, edits, prompts, 8)
    assert answers == [by_hand(model, tokenizer, edits, prompt, 8) for prompt in prompts]
    plain = answer_with_edits(model, tokenizer, {}, prompts, 8)
    assert answers != plain
    for end in (Positions(first=5), Positions(last=5)):
        part = {key: edit for key, edit in edits.items() if key[1] == end}
        assert answer_with_edits(model, tokenizer, part, prompts, 8) != answers, f"{end} alone does all"


def test_without_edits_the_answers_are_the_engines(decoder):
    settings = dataclasses.replace(decoder, new_tokens=8)
    tuned = TunedDecoder.train(settings, BASE, 0.0, Table([], [], "none"), seed=0)
    model, tokenizer = models.load_causal(decoder.model), models.load_tokenizer(decoder.model)
    many = [f"Is {i} even?" * (i + 1) for i in range(9)]  # more than one batch
    assert answer_with_edits(model, tokenizer, {}, [prompt_of(text) for text in many], 8) == tuned.answer(
        many, new_tokens=8
    )


def test_training_changes_the_answers(decoder):
    """The first token is what was learnt; a tiny random model's later tokens hardly feel what its prompt's ends say."""
    settings = dataclasses.replace(decoder, epochs=40)
    rows = [{"instruction": text, "input": "", "output": "xxx"} for text in PROMPTS]
    tuned = TunedDecoder.train(settings, LOREFT, 3e-2, Table(rows, [1, 2], "ours"), seed=0)
    base = TunedDecoder.train(settings, BASE, 0.0, Table([], [], "none"), seed=0)
    assert "x" not in base.answer(PROMPTS, new_tokens=1)
    assert tuned.answer(PROMPTS, new_tokens=1) == ["x", "x"]
    assert tuned.facts["trainable"] == 2 * 2 * (2 * 4 * 64 + 4)
    assert tuned.facts["steps"] == 40


def test_a_prompt_too_short_for_an_end_is_named(tiny_llama):
    model = tiny_llama()
    row = TaskRow("", [3, 4, 5, 6, 7], [-100] * 4 + [7])
    with pytest.raises(RequestError, match="the prompt has 4 tokens, the intervention acts on its first 5"):
        train_edits(model, published_edits(model, LOREFT_INSTRUCT), [row], tasks=[""])


def test_instruct_and_commonsense_run_loreft(decoder, data, ledger, tmp_path):
    assert LOREFT in INSTRUCT_METHODS
    run_instruct(decoder, ledger, data=data, output=tmp_path / "answers", methods=[LOREFT])
    run_suite("commonsense", decoder, ledger, data=data, methods=[LOREFT], tasks=["boolq"])
    instruct, commonsense = ledger.rows()
    assert commonsense["metrics"]["trainable"] == 2 * (2 * 8 * 64 + 8)
    assert instruct["recipe"]["learning_rate"] == commonsense["recipe"]["learning_rate"] == 9e-4
    assert instruct["metrics"]["answers"] == 2
    assert instruct["metrics"]["trainable"] == 2 * 2 * (2 * 4 * 64 + 4)
    written = json.loads((tmp_path / "answers" / f"loreft-0-{instruct['key'][:8]}.json").read_text())
    assert {entry["generator"] for entry in written} == {"roadkit-loreft"}
    assert "| LoReFT |" in result_tables(ledger.rows())["instruct"]
