"""One request's trouble is its own."""

from __future__ import annotations

import pytest
import torch

from roadkit.adapter import Adapter
from roadkit.engine.request import Request
from roadkit.errors import ExpressionError, RequestError
from tests.conftest import random_parameters
from tests.engine.plain import (
    NAMES,
    VOCAB,
    assert_same,
    nothing_held,
    prompt,
)


def trouble(tmp_path, adapters) -> dict:
    """Request settings that cannot be served, with a part of the message."""
    (tmp_path / "empty").mkdir()
    adapters["one"].save(tmp_path / "cut")
    weights = tmp_path / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    layer = "model.layers.0.mlp.up_proj"
    wide = Adapter.from_parameters({layer: random_parameters("road_1", 64, 2)}, variant="road_1", group_size=2)
    wide.save(tmp_path / "wide")
    theta, alpha = random_parameters("road_1", 128, 2)
    huge = Adapter.from_parameters({layer: (theta, 1e38 * alpha)}, variant="road_1", group_size=2)
    lm_head = Adapter.from_parameters(
        {"lm_head": random_parameters("road_1", VOCAB, 2)}, variant="road_1", group_size=2
    )
    heads = {"lm_head": {"weight": torch.zeros(VOCAB, 64)}}
    own_head = Adapter.from_parameters({layer: (theta, alpha)}, variant="road_1", group_size=2, heads=heads)
    adapters |= {"cut": tmp_path / "cut", "empty": tmp_path / "empty", "gone": str(tmp_path / "gone")}
    adapters |= {"wide": tmp_path / "wide", "huge": huge, "lm_head": lm_head, "own_head": own_head}
    return {
        "no adapter 'tow'; did you mean 'two'?": {"adapter": "tow"},
        "expected an adapter name at position 6": {"adapter": "one + "},
        "strength 9 at position 4 is too large": {"adapter": "one*9"},
        "do not compose: model.layers.0.mlp.up_proj: group_size": {"adapter": "one + huge"},
        "truncated or corrupt": {"adapter": "cut"},
        "adapter_config.json is missing": {"adapter": "empty"},
        "no such directory": {"adapter": "gone"},
        "up_proj: adapter is 64 wide, layer 128": {"adapter": "wide"},
        "logits are not finite with this adapter": {"adapter": "huge"},
        "lm_head cannot be rotated here": {"adapter": "lm_head"},
        "brings whole modules (lm_head)": {"adapter": "own_head"},
        "the prompt is empty": {"prompt": []},
        "token id 384 is outside the vocabulary of 384": {"prompt": [5, 384]},
        "token id -1 is outside the vocabulary of 384": {"prompt": [-1]},
        "the prompt has 600 tokens and max_tokens is 5, together at most 512 fit": {"prompt": prompt(0, 600)},
        "the model has no chat template": {"prompt": [{"role": "user", "content": "hi"}]},
    }


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_requests_that_cannot_be_served_leave_the_others_going(make_engine, tmp_path, adapters, temperature):
    fine = [Request(prompt=prompt(i), adapter=name, max_tokens=8) for i, name in enumerate(NAMES)]
    expected = make_engine().generate(fine)
    troubled = trouble(tmp_path, adapters)
    engine = make_engine(adapters=adapters, slots=3)
    defaults = {"prompt": prompt(3), "max_tokens": 5, "temperature": temperature}
    requests = [Request(**defaults | settings) for settings in troubled.values()]
    answers = engine.generate([*requests[:8], *fine, *requests[8:]])
    assert_same(answers[8 : 8 + len(fine)], expected)
    for message, answer in zip(troubled, answers[:8] + answers[8 + len(fine) :], strict=True):
        assert answer.finish_reason == "error", message
        assert answer.error is not None
        assert message in answer.error
        assert not answer.token_ids
    assert nothing_held(engine)
    assert_same(engine.generate(fine), expected)


def test_submit_raises_what_generate_reports(make_engine):
    engine = make_engine()
    with pytest.raises(ExpressionError, match="no adapter 'three'"):
        engine.submit(Request(prompt=[5], adapter="three"))
    with pytest.raises(RequestError, match="the prompt is empty"):
        engine.submit(Request(prompt=""))


@pytest.mark.parametrize("where", ["step", "sample", "detokenizer"])
def test_a_failing_step_fails_its_requests_and_the_engine_lives_on(make_engine, monkeypatch, caplog, where):
    engine = make_engine()
    items = [Request(prompt=prompt(i), adapter=NAMES[i], max_tokens=4, ignore_eos=True) for i in range(3)]
    expected = engine.generate(items)

    def fail(*_, **__):
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        if where == "step":
            patch.setattr(engine.runner.model, "forward", fail)
        elif where == "sample":
            patch.setattr("roadkit.engine.engine.sample", fail)
        else:
            patch.setattr("roadkit.engine.text.Detokenizer.push", fail)
        answers = engine.generate(items)
    assert [(answer.finish_reason, answer.error) for answer in answers] == [("error", "RuntimeError: out of luck")] * 3
    assert "a step failed" in caplog.text
    assert nothing_held(engine)
    assert_same(engine.generate(items), expected)
