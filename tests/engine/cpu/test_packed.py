from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from roadkit.adapter import Adapter
from roadkit.engine.bank import Bank
from roadkit.engine.cpu.packed import PackedLinear, pack
from roadkit.errors import ModelError
from roadkit.kernels import native
from tests.conftest import TOLERANCE, random_parameters

pytestmark = pytest.mark.skipif(native.load() is None, reason="no C compiler here")

SIZES = [(1, 1), (3, 5), (31, 7), (32, 64), (33, 1), (64, 192), (577, 65)]  # outputs, inputs
COUNTS = (0, 1, 2, 3, 11, 12, 13, 24, 25, 133)  # the tiles hold 12 rows


def close_to(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Sums of many products: within the table, of the size of the result."""
    tolerance, size = TOLERANCE[actual.dtype], float(expected.abs().max()) if expected.numel() else 0
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=tolerance["rtol"], atol=tolerance["rtol"] * size)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
def test_equals_linear(sizes, dtype, biased):
    weight, bias = torch.randn(sizes).to(dtype), torch.randn(sizes[0]) if biased else None
    layer = PackedLinear(weight, None, bias)
    for count in COUNTS:
        x = torch.randn(count, sizes[1])
        expected = nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
        close_to(layer(x), expected)


@pytest.mark.parametrize("sizes", SIZES)
def test_int8_weights_have_a_scale_for_each_output(sizes):
    weight, scale, bias = torch.randint(-127, 128, sizes, dtype=torch.int8), torch.rand(sizes[0]), torch.randn(sizes[0])
    layer = PackedLinear(weight, scale, bias)
    for count in COUNTS:
        x = torch.randn(count, sizes[1])
        close_to(
            layer(x), nn.functional.linear(x.double(), weight.double() * scale.double().unsqueeze(1), bias.double())
        )


@pytest.mark.parametrize("shape", [(5,), (2, 3, 5), (1, 7, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_leading_shape_and_dtype(shape, dtype):
    weight, x = torch.randn(3, 5), torch.randn(shape).to(dtype)
    y = PackedLinear(weight, None, None)(x)
    assert y.dtype == dtype
    assert y.shape == (*shape[:-1], 3)
    close_to(y, nn.functional.linear(x.double(), weight.double()))


def test_strided_input():
    weight, x = torch.randn(3, 5), torch.randn(5, 9).t()
    close_to(PackedLinear(weight, None, None)(x), nn.functional.linear(x, weight))


@pytest.mark.parametrize("weights", [None, "bfloat16", "int8"])
def test_a_row_alone_is_exactly_the_row_in_any_batch(weights):
    adapters = {f"a{i}": _adapter({"q": 576}, seed=i, group_size=64) for i in range(3)}
    model = nn.ModuleDict({"q": nn.Linear(65, 576)})
    layer, bank = _packed_bank(model, adapters, weights)
    x, names = torch.randn(133, 65), [("a0", None, "a1", "a2")[i % 4] for i in range(133)]
    with bank.rows(names):
        together = layer(x)
    for count in (1, 2, 5, 12, 64):
        for start in (0, 7, 60):
            with bank.rows(names[start : start + count]):
                assert torch.equal(layer(x[start : start + count]), together[start : start + count])


def _adapter(widths: dict[str, int], *, seed: int, group_size: int, variant: str = "road_2") -> Adapter:
    parameters = {name: random_parameters(variant, width, group_size, seed) for name, width in widths.items()}
    return Adapter.from_parameters(parameters, variant=variant, group_size=group_size)


def _packed_bank(model: nn.ModuleDict, adapters: dict, weights=None) -> tuple[nn.Module, Bank]:
    model.requires_grad_(False)
    layers = pack(model, weights=weights)

    def bind(layer):
        layers[layer.module].attach(layer)
        return layers[layer.module].detach

    return model["q"], Bank(model, adapters, bind=bind)


@pytest.mark.parametrize(
    ("width", "group_sizes"),
    [(6, (6,)), (192, (64,)), (192, (2, 64)), (576, (6, 2, 192)), (4800, (2,)), (4800, (64, 6))],
)
def test_rotation_is_that_of_the_unpacked_layer(width, group_sizes):
    model = nn.ModuleDict({"q": nn.Linear(7, width)}).requires_grad_(False)
    adapters = {f"g{size}": _adapter({"q": width}, seed=size, group_size=size) for size in group_sizes}
    x, names = torch.randn(13, 7), [[None, *adapters][i % (1 + len(adapters))] for i in range(13)]
    plain = Bank(model, adapters)
    with plain.rows(names):
        expected, base = model["q"](x), None
    plain.close()
    base = model["q"](x)
    layer, bank = _packed_bank(model, adapters)
    with bank.rows(names):
        close_to(layer(x), expected)
    close_to(layer(x), base)
    bank.close()
    close_to(layer(x), base)


def test_pairings_that_do_not_fit_a_layer_do_not_reach_beyond_it():
    """The bank's planes are those of all its adapters; a pairing wider than a layer must not touch its neighbours."""
    model = nn.ModuleDict({"q": nn.Linear(7, 8), "v": nn.Linear(7, 64)}).requires_grad_(False)
    adapters = {"wide": _adapter({"v": 64}, seed=1, group_size=64), "narrow": _adapter({"q": 8}, seed=2, group_size=4)}
    x = torch.randn(3, 7)
    plain = Bank(model, adapters)
    with plain.rows(["wide", "narrow", None]):
        expected = model["q"](x)
    plain.close()
    layer, bank = _packed_bank(model, adapters)
    for _ in range(50):
        with bank.rows(["wide", "narrow", None]):
            close_to(layer(x), expected)


def test_rows_of_another_batch_are_our_mistake():
    layer, bank = _packed_bank(nn.ModuleDict({"q": nn.Linear(3, 8)}), {"a": _adapter({"q": 8}, seed=1, group_size=2)})
    with bank.rows(["a"]), pytest.raises(AssertionError, match="2 tokens, but 1 bank rows"):
        layer(torch.randn(2, 3))


# ---- packing a model --------------------------------------------------------------------------------------------


def test_every_linear_layer_is_packed(tiny_llama, tiny_gpt2):
    ids = torch.randint(256, (2, 9))
    for make, count in ((tiny_llama, 15), (tiny_gpt2, 9)):
        model = make()
        with torch.no_grad():
            expected = model(ids).logits
            assert len(pack(model)) == count
            close_to(model(ids).logits, expected)


def test_tied_embeddings_stay(tiny_qwen):
    model, ids = tiny_qwen(), torch.randint(256, (1, 9))
    embeddings = model.model.embed_tokens.weight
    with torch.no_grad():
        expected = model(ids).logits
        assert model.lm_head in pack(model)
        assert model.model.embed_tokens.weight is embeddings
        assert embeddings.shape == (256, 64)
        close_to(model(ids).logits, expected)


def test_plain_weights_are_dropped():
    model = nn.ModuleDict({"q": nn.Linear(3, 8), "c": Conv1D(8, 3)})
    pack(model)
    assert [model.get_parameter(f"{name}.weight").numel() for name in ("q", "c")] == [0, 0]


@pytest.mark.parametrize(("weights", "error"), [("bfloat16", 0.01), ("int8", 0.02)])
def test_smaller_weights_are_near(weights, error):
    layer = nn.Linear(256, 64).requires_grad_(False)
    x, expected = torch.randn(4, 256), None
    expected = layer(x)
    model = nn.ModuleDict({"q": layer})
    pack(model, weights=weights)
    actual = model["q"](x)
    assert not torch.equal(actual, expected)
    assert (actual - expected).norm() < error * expected.norm()


def test_torchao_weights_are_read_as_they_are():
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.ModuleDict({"q": nn.Linear(64, 96)}).requires_grad_(False)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig(version=2))
    x = torch.randn(5, 64)
    expected = model["q"](x)
    assert model["q"] in pack(model)
    close_to(model["q"](x), expected)


def test_what_the_kernel_does_not_read_stays_as_it_is():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_features, self.out_features = 3, 8

    model = nn.ModuleDict({"f16": nn.Linear(3, 8).half(), "own": Own(), "f64": nn.Linear(3, 8).double()})
    assert pack(model) == {}
    assert model.get_parameter("f16.weight").numel() == 24


def test_without_the_kernels_nothing_is_packed(monkeypatch):
    monkeypatch.setattr(native, "load", lambda: None)
    model = nn.ModuleDict({"q": nn.Linear(3, 8)})
    assert pack(model) == {}
    assert pack(model, weights="float32") == {}
    with pytest.raises(ModelError, match="weights='int8' needs the fused CPU kernels, and there is no C compiler"):
        pack(model, weights="int8")
