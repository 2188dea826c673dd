from __future__ import annotations

import resource
import shutil

import pytest
import torch
from torch import nn

from roadkit import modules
from roadkit.adapter import Adapter
from roadkit.engine.bank import IDENTITY, Bank
from roadkit.errors import AdapterError, AlgebraError, BankFull, ExpressionError, RoadkitError
from tests.conftest import TOLERANCE, random_parameters

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


def close_to(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance, size = TOLERANCE[expected.dtype], float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=tolerance["rtol"], atol=tolerance["rtol"] * size)


def small(seed: int, layers=("q",), width: int = 8, group_size: int = 4, variant: str = "road_1") -> Adapter:
    parameters = {name: random_parameters(variant, width, group_size, seed + i) for i, name in enumerate(layers)}
    return Adapter.from_parameters(parameters, variant=variant, group_size=group_size)


@pytest.fixture
def model():
    """Three layers of different widths, for tests that need no transformer."""
    layers = {"q": nn.Linear(6, 8), "v": nn.Linear(6, 24), "o": nn.Linear(6, 36)}
    return nn.ModuleDict(layers).requires_grad_(False)  # else the fused kernel stands back


def rotated(model: nn.Module, adapter: Adapter | None, layer: str, x: torch.Tensor) -> torch.Tensor:
    if adapter is None or layer not in adapter.layout.layers:
        return model[layer](x)  # type: ignore[index]
    with modules.attached(model, adapter):
        return model[layer](x)  # type: ignore[index]


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
    assert not any(bank._users.values())


def rotated_row(model, adapter, x, row):
    from roadkit.rotation import rotate

    return rotate(nn.functional.linear(x[row], model["q"].weight, model["q"].bias), *adapter.layer("q"))


def test_batch_of_another_size_is_refused(model):
    bank = Bank(model, {"one": small(1)})
    with (
        bank.rows(["one", None]),
        pytest.raises(AdapterError, match=r"rows \[2\] must be the leading shape of h \[3, 8\]"),
    ):
        model["q"](torch.randn(3, 6))


def test_a_layer_that_returns_its_bias_apart_is_refused():
    class ReturnsBias(nn.Linear):
        def forward(self, x):
            return x @ self.weight.T, self.bias

    model = nn.ModuleDict({"q": ReturnsBias(6, 8)})
    with Bank(model, {"one": small(1)}).rows(["one"]), pytest.raises(AdapterError, match="q returns its bias apart"):
        model["q"](torch.randn(1, 6))


def test_a_layer_may_see_the_tokens_of_a_row_without_their_batch(model):
    """OPT's fc1 is called with [tokens, d], as the experts of some models are."""
    one = small(1)
    bank = Bank(model, {"one": one})
    x = torch.randn(1, 5, 6)
    with bank.rows(["one", None, "one", "one*0.5", None]):
        bank.current = bank.current.view(1, 5)  # as the engine sets it: a row a token
        close_to(model["q"](x[0]), model["q"](x)[0])
    bank.close()


# ---- slots ------------------------------------------------------------------------------------------------------


def test_least_recently_used_row_is_evicted(model):
    bank = Bank(model, {name: small(i) for i, name in enumerate("abc")}, slots=2)
    rows = {}
    for name in ("a", "b", "a", "c"):
        rows[name] = bank.acquire(bank.parse(name))
        bank.release(rows[name])
    assert set(bank.resident()) == {rows["a"].key, rows["c"].key}
    assert rows["c"].slot == rows["b"].slot
    assert bank.acquire(bank.parse("a")).slot == rows["a"].slot


def test_rows_in_use_are_never_evicted(model):
    adapters = {name: small(i) for i, name in enumerate("abcd")}
    bank, x = Bank(model, adapters, slots=2), torch.randn(2, 6)
    held = bank.acquire(bank.parse("a"))
    for name in "bcd":  # `a` is the least recently used all the while
        with bank.rows([name]):
            assert bank.resident()[held.key] == held.slot
    for name in "bcdbcd":
        with bank.rows([name, "a"]):
            torch.testing.assert_close(model["q"](x)[1], rotated_row(model, adapters["a"], x, 1))
    assert bank.resident()[held.key] == held.slot
    again = bank.acquire(bank.parse("a"))
    bank.release(held)
    with pytest.raises(BankFull), bank.rows(["b", "c"]):  # still held once
        pass
    bank.release(again)
    with bank.rows(["b", "c"]):
        assert held.key not in bank.resident()


def test_full_bank_says_so_and_loses_nothing(model):
    bank = Bank(model, {name: small(i) for i, name in enumerate("abc")}, slots=2)
    with pytest.raises(BankFull, match="all 2 bank slots are in use; raise slots or wait"), bank.rows(["a", "b", "c"]):
        pass
    assert not any(bank._users.values())
    with bank.rows(["c", "b", "c", None]):
        pass


def test_base_needs_no_slot(model):
    bank, x = Bank(model, {"a": small(1)}, slots=1), torch.randn(3, 6)
    held = bank.acquire(bank.parse("a"))
    with bank.rows([None, None, None]):
        assert torch.equal(model["q"](x), nn.functional.linear(x, model["q"].weight, model["q"].bias))
    assert bank.acquire(()).slot == IDENTITY
    bank.release(bank.acquire(()))
    bank.release(held)


def test_equal_content_shares_a_row(model, tmp_path):
    small(1).save(tmp_path / "a")
    bank = Bank(model, {"one": small(1), "same": small(1), "file": tmp_path / "a", "other": small(2)}, slots=2)
    with bank.rows(["one", "same", "file", "same*1", "other", "1.0*other"]):
        assert len(bank.resident()) == 2
    with bank.rows(["one*0.5", "0.50*file"]):
        assert len(set(bank._users)) == 2


def test_what_cannot_be_composed_takes_no_slot(model, tmp_path):
    bank = Bank(model, {"good": small(1), "two": small(2, group_size=2), "bad": tmp_path}, slots=1)
    for _ in range(3):
        for text, error in (("bad", AdapterError), ("good + two", AdapterError), ("nobody", ExpressionError)):
            with pytest.raises(error):
                bank.acquire(bank.parse(text))
    with bank.rows(["good"]):
        pass


# ---- growing ----------------------------------------------------------------------------------------------------


def test_new_layers_and_group_sizes_are_added_under_running_rows(model):
    adapters = {
        "q": small(1),
        "v": small(2, layers=("v",), width=24, group_size=6),
        "both": small(3, layers=("q",), group_size=2).then(small(4, layers=("v",), width=24, group_size=12)),
    }
    bank, x = Bank(model, slots=3), torch.randn(3, 6)
    expected = {
        (name, layer): rotated(model, adapter, layer, x) for name, adapter in adapters.items() for layer in ("q", "v")
    }
    held = []
    for count, name in enumerate(adapters, 1):
        bank.add(name, adapters[name])
        held.append((name, bank.acquire(bank.parse(name))))
        for seen, row in held:  # every row that was there before still computes the same
            bank.current = torch.full((3,), row.slot)
            for layer in ("q", "v"):
                close_to(model[layer](x), expected[seen, layer])
            bank.current = None
        assert len(bank.resident()) == count


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_group_sizes_that_do_not_fit_every_layer(model, order):
    """8, 24 and 36 outputs: no group size above 4 fits all three, yet each adapter is served."""
    adapters = [
        small(1, layers=("q",), width=8, group_size=8),
        small(2, layers=("v",), width=24, group_size=24),
        small(3, layers=("o",), width=36, group_size=12),
    ]
    bank, x = Bank(model, {str(i): adapters[i] for i in order}), torch.randn(4, 6)
    expected = {
        layer: torch.stack([rotated(model, adapter, layer, x)[i] for i, adapter in enumerate([*adapters, None])])
        for layer in ("q", "v", "o")
    }
    with bank.rows(["0", "1", "2", None]):
        for layer, wanted in expected.items():
            close_to(model[layer](x), wanted)


def test_layers_and_sizes_may_be_prepared_beforehand(model):
    bank = Bank(model, slots=2, target_layers=["q", "v"], group_sizes=[4, 2])
    buffer = bank.address
    bank.add("a", small(1))
    with bank.rows(["a"]):
        assert bank.address == buffer
    bank.add("b", small(1, layers=("o",), width=36))
    with bank.rows(["b"]):
        assert bank.address != buffer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "a bank needs at least one slot, got 0"),
        ({"target_layers": ["k"]}, "no layer 'k' that can be rotated in this model"),
        ({"target_layers": ["odd"]}, "odd: width 7 is odd"),
        ({"target_layers": ["q"], "group_sizes": [3]}, "group_size must be an even number of at least 2, got 3"),
    ],
)
def test_impossible_banks_are_refused(model, options, message):
    model["odd"] = nn.Linear(6, 7)
    with pytest.raises((AdapterError, AlgebraError), match=message):
        Bank(model, **options)
    assert not model["q"]._forward_hooks


# ---- names ------------------------------------------------------------------------------------------------------


def test_new_version_leaves_running_rows_as_they_are(model):
    old, new = small(1), small(2)
    bank, x = Bank(model, {"a": old}, slots=2), torch.randn(2, 6)
    with bank.rows(["a", None]):
        bank.add("a", new)
        torch.testing.assert_close(model["q"](x)[0], rotated_row(model, old, x, 0))
        with bank.rows(["a", None]):
            torch.testing.assert_close(model["q"](x)[0], rotated_row(model, new, x, 0))
        torch.testing.assert_close(model["q"](x)[0], rotated_row(model, old, x, 0))
    with bank.rows(["a", None]):
        torch.testing.assert_close(model["q"](x)[0], rotated_row(model, new, x, 0))


def test_replaced_directory_is_read_when_it_is_read_again(model, tmp_path):
    """Content, not the name or path, identifies a row: what was cached under it is never another adapter's."""
    old, new = small(1), small(2)
    old.save(tmp_path / "a")
    bank = Bank(model, {"a": tmp_path / "a", "b": small(3)}, slots=1)
    before = bank.acquire(bank.parse("a"))
    bank.release(before)
    new.save(tmp_path / "a")
    bank.add("a", tmp_path / "a")
    after = bank.acquire(bank.parse("a"))
    assert after.key == new.content_hash != before.key == old.content_hash
    bank.release(after)


def test_removed_names_are_unknown_and_their_rows_go_on(model):
    one = small(1)
    bank, x = Bank(model, {"one": one, "other": small(2)}), torch.randn(1, 6)
    terms = bank.parse("one")
    with bank.rows(["one"]):
        bank.remove("one")
        torch.testing.assert_close(model["q"](x)[0], rotated_row(model, one, x, 0))
    assert bank.names == ("other",)
    with pytest.raises(ExpressionError, match="no adapter 'one'"):
        bank.parse("one")
    with pytest.raises(ExpressionError, match="adapter 'one' has been removed"):
        bank.acquire(terms)
    with pytest.raises(ExpressionError, match="no adapter 'onee'"):
        bank.remove("onee")


@pytest.mark.parametrize("name", ["", " ", "a b", "-a", "a*b", "a+b", "é", "a\n", ".a"])
def test_names_that_no_expression_could_say_are_refused(model, name):
    with pytest.raises(AdapterError, match="is no adapter name"):
        Bank(model).add(name, small(1))


def test_what_does_not_fit_is_refused_when_added_and_directories_when_used(model, tmp_path):
    bank = Bank(model, {"good": small(1)})
    with pytest.raises(AdapterError, match="q: adapter is 12 wide, layer 8"):
        bank.add("wide", small(1, width=12))
    with pytest.raises(AdapterError, match="adapter 'gone': no such directory: gone"):
        bank.add("gone", "gone")
    small(1, width=12).save(tmp_path / "wide")
    bank.add("wide", tmp_path / "wide")
    bank.add("empty", str(tmp_path / "nowhere"))
    with pytest.raises(AdapterError, match="q: adapter is 12 wide, layer 8"), bank.rows(["wide"]):
        pass
    with pytest.raises(AdapterError, match="no such directory"), bank.rows(["good", "empty"]):
        pass
    assert not any(bank._users.values())
    with bank.rows(["good"]):
        pass


def test_a_thousand_registered_directories_cost_no_memory(model, tmp_path):
    wide = nn.ModuleDict({"q": nn.Linear(2, 65536)})
    adapter = small(1, width=65536)  # half a megabyte of rows, a quarter on disk
    adapter.save(tmp_path / "a")
    bank = Bank(wide, {"first": tmp_path / "a"}, slots=2)
    with bank.rows(["first"]):
        pass
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(1000):
        bank.add(f"a{i}", tmp_path / "a")
    for i in range(0, 1000, 20):
        with bank.rows([f"a{i}", None]):
            pass
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 20 * 1024, f"{grown / 1024:.0f} MiB more for 1,000 names; loading them all would take 750"
    assert len(bank.names) == 1001


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
