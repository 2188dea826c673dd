from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from roadkit.engine.bank.heads import HeadBank
from roadkit.errors import ModelError


class Classifier(nn.Module):
    """The least that looks like a classifier of transformers."""

    def __init__(self, num_labels: int = 3):
        super().__init__()
        self.body, self.score = nn.Linear(6, 8), nn.Linear(8, num_labels)

    def forward(self, x: Tensor, return_dict: bool = True):
        logits = self.score(torch.tanh(self.body(x)))
        return SequenceClassifierOutput(logits=logits) if return_dict else (logits,)  # type: ignore[arg-type]


def head(num_labels: int, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "score": {
            "weight": torch.randn(num_labels, 8, generator=generator),
            "bias": torch.randn(num_labels, generator=generator),
        }
    }


def expected(model: Classifier, x: Tensor, heads: dict) -> Tensor:
    hidden = torch.tanh(model.body(x))
    own = heads.get("score", {"weight": model.score.weight, "bias": model.score.bias})
    return nn.functional.linear(hidden, own["weight"], own["bias"])


@pytest.fixture
def model():
    return Classifier().eval()


def test_every_row_has_its_own_head(model, close):
    bank, x = HeadBank(model), torch.randn(5, 6)
    one, two = head(3, 1), head(3, 2)
    bank.prepare(one)
    rows = [one, {}, two, one, {}]
    with bank.active(rows):
        logits = model(x).logits
    assert isinstance(logits, Tensor)
    for i, heads in enumerate(rows):
        close(logits[i], expected(model, x[i], heads))
    close(model(x).logits, expected(model, x, {}))


def test_heads_of_different_sizes_come_back_as_a_list(model, close):
    bank, x = HeadBank(model), torch.randn(4, 6)
    rows = [head(2, 1), {}, head(7, 2), head(2, 3)]
    for heads in rows:
        bank.prepare(heads)
    with bank.active(rows):
        logits = model(x).logits
        again = model(x).logits
    assert isinstance(logits, list)
    assert [row.shape for row in logits] == [(2,), (3,), (7,), (2,)]
    for i, heads in enumerate(rows):
        close(logits[i], expected(model, x[i], heads))
        assert torch.equal(again[i], logits[i])
    assert model(x).logits.shape == (4, 3), "the list must not outlive its block"


def test_same_size_other_than_the_models_is_a_tensor(model):
    bank = HeadBank(model)
    rows = [head(5, 1), head(5, 2)]
    bank.prepare(rows[0])
    with bank.active(rows):
        assert model(torch.randn(2, 6)).logits.shape == (2, 5)


def test_blocks_nest(model, close):
    bank, x = HeadBank(model), torch.randn(2, 6)
    one, two = head(3, 1), head(3, 2)
    bank.prepare(one)
    with bank.active([one, one]):
        with bank.active([two, {}]):
            close(model(x).logits[0], expected(model, x[0], two))
        close(model(x).logits, expected(model, x, one))


def test_error_inside_leaves_no_trace(model):
    bank, x = HeadBank(model), torch.randn(2, 6)
    rows = [head(2, 1), head(5, 2)]
    bank.prepare(rows[0])
    with pytest.raises(KeyError), bank.active(rows):
        model.score(torch.randn(2, 8))  # the head ran, the model's own hook did not
        raise KeyError
    assert model(x).logits.shape == (2, 3)


def test_batch_of_another_size_is_refused(model):
    bank = HeadBank(model)
    bank.prepare(head(3, 1))
    with bank.active([head(3, 1)] * 2), pytest.raises(ModelError, match="3 samples, but 2 rows"):
        model(torch.randn(3, 6))


def test_uneven_heads_need_an_output_with_logits(model):
    bank = HeadBank(model)
    rows = [head(2, 1), head(5, 2)]
    bank.prepare(rows[0])
    with bank.active(rows), pytest.raises(ModelError, match="heads of different sizes need an output with `logits`"):
        model(torch.randn(2, 6), return_dict=False)


def test_closing_leaves_the_model_as_it_was(model):
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    bank = HeadBank(model)
    bank.prepare(head(2, 1))
    bank.prepare(head(2, 2))
    assert len(model.score._forward_hooks) == 1, "a second adapter needs no second hook"
    bank.close()
    assert [dict(module._forward_hooks) for module in model.modules()] == hooks
    assert all(not module._forward_hooks_with_kwargs for module in model.modules())


def test_other_hooks_on_the_head_run_once(model):
    calls = []
    model.score.register_forward_hook(lambda module, args, output: calls.append(output.shape))
    bank = HeadBank(model)
    bank.prepare(head(3, 1))
    with bank.active([head(3, 1), head(3, 2), {}]):
        model(torch.randn(3, 6))
    assert calls == [(3, 3)]


def test_heads_with_layers_inside(close):
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_labels": 2}
    config = RobertaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
    model = RobertaForSequenceClassification(config).eval()
    heads = [
        {"classifier": {name: torch.randn_like(p) for name, p in model.classifier.named_parameters()}} for _ in range(2)
    ]
    heads[1]["classifier"] |= {"out_proj.weight": torch.randn(5, 16), "out_proj.bias": torch.randn(5)}
    bank, ids = HeadBank(model), torch.randint(3, 64, (3, 7))
    bank.prepare(heads[0])
    rows = [heads[1], {}, heads[0]]
    with torch.no_grad(), bank.active(rows):
        logits = model(ids).logits
    assert [len(row) for row in logits] == [5, 2, 2]
    for i, own in enumerate(rows):
        alone = RobertaForSequenceClassification(config).eval()
        alone.load_state_dict(model.state_dict())
        for name, tensor in own.get("classifier", {}).items():
            alone.classifier.get_parameter(name).data = tensor
        with torch.no_grad():
            close(logits[i], alone(ids[i : i + 1]).logits[0])


def test_keyword_and_scalar_arguments_reach_the_head(close):
    class Scaled(nn.Linear):
        # gain [batch, 1] goes with its samples, factor does not
        def forward(self, x, *, factor, gain):  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().forward(x) * gain * factor

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.score = Scaled(8, 3)

        def forward(self, x):
            gain = torch.arange(len(x)).unsqueeze(1).float()
            return SequenceClassifierOutput(logits=self.score(x, factor=2.0, gain=gain))

    model, x = Model(), torch.randn(4, 8)
    one, bank = head(3, 1), HeadBank(model)
    bank.prepare(one)
    with bank.active([{}, one, {}, one]):
        logits = model(x).logits
    for i, own in enumerate(itertools.islice(itertools.cycle([None, one["score"]]), 4)):
        weight, bias = (model.score.weight, model.score.bias) if own is None else (own["weight"], own["bias"])
        close(logits[i], 2 * i * nn.functional.linear(x[i], weight, bias))
