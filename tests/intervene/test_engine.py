"""Interventions in the engine: the same answers as `intervened` gives, mixed with adapters, pages never confused."""

from __future__ import annotations

import pytest
import torch

from roadkit import modules
from roadkit.engine.bank import Bank
from roadkit.engine.cache import PAGE
from roadkit.engine.engine import Engine
from roadkit.engine.request import Request
from roadkit.errors import AdapterError, ExpressionError, ModelError
from roadkit.expression import compose
from roadkit.intervene import intervened

VOCAB = 384
SITES = ("model.layers.0", "model.layers.1.mlp")


def prompt(seed: int, length: int) -> list[int]:
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture
def room(tiny_llama, tiny_tokenizer, random_adapter, make_intervention):
    """A plain model, and an engine on its twin with an adapter and interventions."""
    plain = tiny_llama(vocab_size=VOCAB)
    known = {
        "formal": random_adapter(plain, 1, layers=("proj",)),
        "tasks": make_intervention("last:2", SITES),
        "steer": make_intervention("all", ("model.layers.1",), seed=5, variant="road_2", group_size=2),
        "start": make_intervention("first:3", ("model.layers.0.self_attn",), seed=9),
    }
    return plain, known, Engine(tiny_llama(vocab_size=VOCAB), tiny_tokenizer, adapters=known, max_batch=8)


def expected(plain, ids, *, adapter=None, intervention=None, count=10) -> list[int]:
    def answer():
        return plain.generate(
            torch.tensor([ids]), max_new_tokens=count, do_sample=False, attention_mask=torch.ones(1, len(ids))
        )[0, len(ids) :].tolist()

    with torch.no_grad(), intervened(plain, [intervention]):
        if adapter is None:
            return answer()
        with modules.attached(plain, adapter):
            return answer()


def test_a_mixed_batch_answers_as_each_alone(room):
    plain, known, engine = room
    tasks, formal = known["tasks"], known["formal"]
    cases = {
        None: {},
        "tasks:one": {"intervention": tasks.select("one")},
        "tasks:two*0.5": {"intervention": tasks.select("two") ** 0.5},
        "tasks:one + tasks:two": {"intervention": tasks},
        "formal": {"adapter": formal},
        "formal*0.5 - tasks:one": {"adapter": formal**0.5, "intervention": tasks.select("one") ** -1},
        "steer": {"intervention": known["steer"]},
        "start:two + formal": {"adapter": formal, "intervention": known["start"].select("two")},
    }
    prompts = [prompt(i, 5 + 9 * i) for i in range(len(cases))]
    requests = [
        Request(prompt=ids, adapter=name, max_tokens=10, ignore_eos=True)
        for ids, name in zip(prompts, cases, strict=True)
    ]
    answers = engine.generate(requests)
    plain.generation_config.eos_token_id = None
    for ids, answer, case in zip(prompts, answers, cases.values(), strict=True):
        assert answer.token_ids == expected(plain, ids, **case), answer
    changed = [answer.token_ids != expected(plain, ids) for ids, answer in zip(prompts, answers, strict=True)]
    assert sum(changed) >= 4, "interventions too weak to see"


def test_the_row_of_an_intervention_leaves_linear_layers_alone(room):
    _, _, engine = room
    row = engine.bank.acquire(engine.bank.parse("tasks:one"))
    assert row.slot == 0
    assert row.site_slot != 0
    engine.bank.release(row)
    both = engine.bank.acquire(engine.bank.parse("formal + tasks:one"))
    assert both.slot == both.site_slot != 0
    engine.bank.release(both)
    assert not engine.bank.num_held


def test_shared_beginnings_are_not_confused_by_positions(room):
    """16 tokens whose last two are turned make a page that a longer prompt with the same beginning must not reuse."""
    plain, known, engine = room
    plain.generation_config.eos_token_id = None
    long = prompt(3, 3 * PAGE)
    short = long[:PAGE]
    for ids in (short, long, short, long[: 2 * PAGE], long):
        (answer,) = engine.generate([Request(prompt=ids, adapter="tasks", max_tokens=6, ignore_eos=True)])
        assert answer.token_ids == expected(plain, ids, intervention=known["tasks"], count=6)
    assert answer.cached_tokens > 0, "the second time a prompt is the same, its beginning is reused"


def test_pages_are_shared_where_the_intervention_is_the_same(room):
    _, _, engine = room
    ids = prompt(4, 3 * PAGE + 5)
    asked = [Request(prompt=[*ids, 9], adapter=name, max_tokens=2) for name in ("steer", "steer", "steer*0.5", None)]
    cached = [engine.generate([request])[0].cached_tokens for request in asked]
    assert cached == [0, 3 * PAGE, 0, 0]


def test_a_chunked_prompt_is_marked_once(room):
    """`last:2` at the end of a prompt that is computed in several chunks."""
    plain, known, engine = room
    engine.scheduler.burst = engine.scheduler.chunk = 7
    plain.generation_config.eos_token_id = None
    ids = prompt(5, 40)
    (answer,) = engine.generate([Request(prompt=ids, adapter="tasks:two", max_tokens=6, ignore_eos=True)])
    assert answer.token_ids == expected(plain, ids, intervention=known["tasks"].select("two"), count=6)


def test_static_decode_intervenes_too(room, monkeypatch):
    """The path that CUDA graphs take, run uncaptured."""
    from roadkit.engine.cuda.static_decode import StaticDecode

    plain, known, engine = room
    plain.generation_config.eos_token_id = None
    static = StaticDecode(engine.runner.model, engine.runner.cache, engine.runner.current)
    monkeypatch.setattr(engine.runner, "static", static)
    names = ["steer", "tasks", None]
    prompts = [prompt(i, 6 + i) for i in range(3)]
    requests = [
        Request(prompt=ids, adapter=name, max_tokens=6, ignore_eos=True)
        for ids, name in zip(prompts, names, strict=True)
    ]
    for ids, name, answer in zip(prompts, names, engine.generate(requests), strict=True):
        assert answer.token_ids == expected(plain, ids, intervention=known.get(name), count=6)  # type: ignore[arg-type]


def test_bad_requests_fail_alone(room, make_intervention):
    _, known, engine = room
    requests = [
        Request(prompt=[5], adapter="tasks", max_tokens=2),
        Request(prompt=[5, 6, 7], adapter="tasks + start", max_tokens=2),
        Request(prompt=[5, 6, 7], adapter="tasks:three", max_tokens=2),
        Request(prompt=[5, 6, 7], adapter="tasks", max_tokens=2),
    ]
    short, mixed, unknown, fine = engine.generate(requests)
    assert "the prompt has 1 tokens, the intervention acts on its last 2" in (short.error or "")
    assert "intervenes at last:2 and at first:3" in (mixed.error or "")
    assert "no adapter 'tasks:three'; did you mean" in (unknown.error or "")
    assert fine.error is None
    assert not engine.bank.num_held
    with pytest.raises(ModelError, match=r"no module 'model.layers.9'"):
        engine.add_adapter("bad", make_intervention(sites=("model.layers.9",)))
    with pytest.raises(AdapterError, match="takes hidden states from another run"):
        engine.add_adapter("bad", known["tasks"].interchange(dict.fromkeys(SITES, torch.zeros(1, 64))))


def test_names_of_subspaces_come_and_go_with_the_intervention(room, tmp_path):
    _, known, engine = room
    known["tasks"].save(tmp_path / "tasks")
    engine.add_adapter("disk", tmp_path / "tasks")
    assert {"disk", "disk:one", "disk:two"} <= set(engine.adapters)
    engine.remove_adapter("disk")
    assert not [name for name in engine.adapters if name.startswith("disk")]
    engine.add_adapter("more:one", known["formal"])
    with pytest.raises(AdapterError, match="has a subspace 'more:one', an adapter has that name"):
        engine.add_adapter("more", known["tasks"])
    assert compose("more:one", {"more:one": known["formal"]}) == known["formal"]


@torch.no_grad()
def test_a_bank_on_any_model_takes_interventions_on_all_positions(tiny_llama, make_intervention):
    model = tiny_llama()
    steer = make_intervention("all", ("model.layers.1",))
    ids = torch.randint(3, 250, (2, 7))
    bank = Bank(model, {"steer": steer, "tasks": make_intervention("last:1")})
    with bank.rows(["steer:one", None]):
        mixed = model(ids).logits
    with pytest.raises(ExpressionError, match="intervenes at last:1"):
        with bank.rows(["tasks", None]):
            pass
    bank.close()
    with intervened(model, [steer.select("one"), None]):
        torch.testing.assert_close(mixed, model(ids).logits)


@torch.no_grad()
def test_a_bank_inside_another_block_intervenes_only_by_its_own_rows(tiny_llama, make_intervention):
    model = tiny_llama()
    ids = torch.randint(3, 250, (2, 7))
    plain = model(ids).logits
    bank = Bank(model, {"steer": make_intervention("all", ("model.layers.1",))})
    with bank.rows(["steer", "steer"]):
        with bank.rows([None, None]):
            assert torch.equal(model(ids).logits, plain)
        assert not torch.equal(model(ids).logits, plain)
