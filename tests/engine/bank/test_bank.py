from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from roadkit import modules
from roadkit.adapter import Adapter
from roadkit.engine.bank import Bank
from roadkit.errors import AdapterError, RoadkitError
from tests.engine.bank.toys import close_to, rotated_row, small

IDS = torch.tensor([[5, 9, 200, 31, 7, 7, 64], [1, 2, 3, 4, 5, 6, 7], [9, 9, 9, 1, 1, 1, 2], [7, 7, 64, 3, 2, 8, 8]])


@pytest.fixture(params=["tiny_llama", "tiny_qwen", "tiny_gemma", "tiny_gpt2", "tiny_bert"])
def family(request):
    return request.getfixturevalue(request.param)


def forward(model: nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(ids)[0]


def alone(model: nn.Module, adapter: Adapter | None, row: int) -> torch.Tensor:
    """What a row gives by itself, with its adapter attached."""
    if adapter is None:
        return forward(model, IDS[row : row + 1])[0]
    with modules.attached(model, adapter):
        return forward(model, IDS[row : row + 1])[0]


# ---- every row by its own adapter -------------------------------------------------------------------------------


def test_rows_of_a_mixed_batch_are_those_alone(family, random_adapter):
    model = family()
    adapters = {
        "one": random_adapter(model, 1),
        "two": random_adapter(model, 2, variant="road_2"),
        "four": random_adapter(model, 3, variant="road_4", group_size=2),
    }
    expected = [alone(model, adapters.get(name), row) for row, name in enumerate(("one", "", "four", "two"))]
    plain = forward(model)
    bank = Bank(model, adapters)
    with bank.rows(["one", None, "four", "two"]):
        mixed = forward(model)
    for actual, wanted in zip(mixed, expected, strict=True):
        close_to(actual, wanted)
    assert torch.equal(mixed[1], plain[1]), "a base request rides along untouched"
    assert torch.equal(forward(model), plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_keep_the_models_dtype(tiny_qwen, random_adapter, dtype):
    model = tiny_qwen().to(dtype)
    adapter = random_adapter(model)
    with Bank(model, {"a": adapter}).rows(["a", None, "a", None]):
        mixed = forward(model)
    assert mixed.dtype == dtype
    with modules.attached(model, adapter):
        assert torch.equal(mixed[0], forward(model)[0])


def test_rows_take_expressions(tiny_llama, random_adapter):
    model = tiny_llama()
    adapters = {name: random_adapter(model, seed) for seed, name in enumerate(("formal", "german"))}
    composed = (adapters["formal"] ** 0.5).then(adapters["german"].inverse())
    expected = alone(model, composed, 0), alone(model, adapters["german"] ** 0.25, 1)
    bank = Bank(model, adapters)
    with bank.rows(["formal*0.5 - german", "0.25*german", None, None]):
        mixed = forward(model)
    close_to(mixed[0], expected[0])
    close_to(mixed[1], expected[1])


def test_generation_runs_in_a_mixed_batch(tiny_llama, random_adapter):
    model = tiny_llama()
    adapters = {"one": random_adapter(model, 1), "two": random_adapter(model, 2)}
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(IDS[:3])}
    one_row = {**options, "attention_mask": torch.ones_like(IDS[:1])}
    expected = []
    for row, name in enumerate(("two", None, "one")):
        if name is None:
            expected.append(model.generate(IDS[row : row + 1], **one_row))
        else:
            with modules.attached(model, adapters[name]):
                expected.append(model.generate(IDS[row : row + 1], **one_row))
    with Bank(model, adapters).rows(["two", None, "one"]):
        mixed = model.generate(IDS[:3], **options)
    assert mixed.tolist() == torch.cat(expected).tolist()


def test_gradients_do_not_stop_at_the_bank(tiny_llama, random_adapter):
    model = tiny_llama()
    bank = Bank(model, {"a": random_adapter(model)})
    with bank.rows(["a", None, "a", None]):
        model(IDS).logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_classifiers_answer_with_each_rows_own_head(tiny_bert, random_adapter):
    model = tiny_bert(num_labels=3)

    def head(labels: int) -> dict:
        return {"classifier": {"weight": torch.randn(labels, 64), "bias": torch.randn(labels)}}

    adapters = {
        "three": random_adapter(model, 1, layers=("query", "value"), heads=head(3)),
        "five": random_adapter(model, 2, layers=("query", "value"), heads=head(5)),
        "none": random_adapter(model, 3, layers=("dense",)),
    }
    names = ["five", None, "three*0.5", "none"]
    chosen = [adapters["five"], None, adapters["three"] ** 0.5, adapters["none"]]
    expected = [alone(model, adapter, row) for row, adapter in enumerate(chosen)]
    bank = Bank(model, adapters)
    with bank.rows(names):
        mixed = forward(model)
    assert isinstance(mixed, list)
    assert [len(row) for row in mixed] == [5, 3, 3, 3]
    for actual, wanted in zip(mixed, expected, strict=True):
        close_to(actual, wanted)
    with bank.rows(["three"] * 4):
        assert forward(model).shape == (4, 3)


def test_blocks_nest_and_errors_leave_no_trace(model):
    one, two = small(1), small(2)
    bank, x = Bank(model, {"one": one, "two": two}), torch.randn(2, 6)
    with bank.rows(["one", "one"]):
        with pytest.raises(KeyError), bank.rows(["two", None]):
            torch.testing.assert_close(model["q"](x)[0], rotated_row(model, two, x, 0))
            raise KeyError
        torch.testing.assert_close(model["q"](x)[1], rotated_row(model, one, x, 1))
    assert torch.equal(model["q"](x), nn.functional.linear(x, model["q"].weight, model["q"].bias))
    assert not bank.num_held


def test_batch_of_another_size_is_refused(model):
    bank = Bank(model, {"one": small(1)})
    with (
        bank.rows(["one", None]),
        pytest.raises(AdapterError, match=r"rows \[2\] must be the leading shape of h \[3, 8\]"),
    ):
        model["q"](torch.randn(3, 6))


def test_a_layer_that_returns_its_bias_apart_is_refused():
    class ReturnsBias(nn.Linear):
        def forward(self, x):  # pyright: ignore[reportIncompatibleMethodOverride]
            return x @ self.weight.T, self.bias

    model = nn.ModuleDict({"q": ReturnsBias(6, 8)})
    with Bank(model, {"one": small(1)}).rows(["one"]), pytest.raises(AdapterError, match="q returns its bias apart"):
        model["q"](torch.randn(1, 6))


def test_a_layer_may_see_the_tokens_of_a_row_without_their_batch(model):
    """OPT's fc1 is called with [tokens, d], as the experts of some models are."""
    one = small(1)
    bank = Bank(model, {"one": one})
    x = torch.randn(1, 5, 6)
    with bank.rows(["one", "one*0.5"]):
        full, half = bank.resident().values()
        with bank.using(torch.tensor([[full, 0, full, half, 0]])):  # as the engine does: a row a token
            close_to(model["q"](x[0]), model["q"](x)[0])
    bank.close()


# ---- leaving ----------------------------------------------------------------------------------------------------


def test_closing_leaves_the_model_as_it_was(family, random_adapter):
    model = family()
    plain = forward(model)

    def hooks():
        return [(dict(m._forward_hooks), dict(m._forward_hooks_with_kwargs), sorted(vars(m))) for m in model.modules()]

    before = hooks()
    bank = Bank(model, {"a": random_adapter(model)})
    with bank.rows(["a"] * 4):
        assert not torch.equal(forward(model), plain)
    assert torch.equal(forward(model), plain), "outside of `rows` the model is the base"
    bank.close()
    bank.close()
    assert hooks() == before
    assert torch.equal(forward(model), plain)


def test_closed_bank_refuses_rows(model):
    bank = Bank(model, {"a": small(1)})
    bank.close()
    with pytest.raises(RoadkitError, match="the bank is closed"), bank.rows(["a"]):
        pass


def test_directory_may_disappear_once_it_is_resident(model, tmp_path):
    small(1).save(tmp_path / "a")
    bank = Bank(model, {"a": tmp_path / "a"})
    with bank.rows(["a"]):
        pass
    shutil.rmtree(tmp_path / "a")
    with bank.rows(["a"]):
        pass
