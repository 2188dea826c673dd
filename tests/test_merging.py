"""A merged model against the attached one, undoing, and weights that cannot be merged into."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from roadkit.adapter import Adapter
from roadkit.errors import ModelError
from roadkit.merging import merge, rotate_matrix_, unmerge
from roadkit.modules import attached, linear_layers
from roadkit.rotation import VARIANTS, lower, rotate
from tests.conftest import TOLERANCE, random_parameters
from tests.model_state import assert_same_state, close_to, head, one_layer, outputs, state


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("group_size", [2, 32])
def test_merged_model_is_the_attached_one(family, random_adapter, variant, group_size):
    model = family()
    adapter = random_adapter(model, variant=variant, group_size=group_size)
    with attached(model, adapter):
        expected = outputs(model)
    merge(model, adapter)
    close_to(outputs(model), expected)


def test_unmerge_undoes_in_float32(family, random_adapter):
    model = family()
    weights, plain = {k: v.clone() for k, v in model.state_dict().items()}, outputs(model)
    merge(model, random_adapter(model))
    unmerge(model)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-6, atol=1e-6)
    close_to(outputs(model), plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_originals_come_back_bit_for_bit(family, random_adapter, dtype):
    model = family().to(dtype)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    adapter = random_adapter(model)
    merge(model, adapter)
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    unmerge(model, adapter)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_16_bit_unmerge_without_originals_warns(tiny_llama, random_adapter):
    model = tiny_llama().bfloat16()
    weight = model.model.layers[0].mlp.up_proj.weight.clone()
    merge(model, random_adapter(model), keep_originals=False)
    with pytest.warns(
        UserWarning, match=r"unmerging from torch.bfloat16 weights rounds them; merge with keep_originals=True"
    ):
        unmerge(model)
    torch.testing.assert_close(model.model.layers[0].mlp.up_proj.weight, weight, **TOLERANCE[torch.bfloat16])


def test_kept_float32_originals_come_back_bit_for_bit(tiny_qwen, random_adapter):
    model = tiny_qwen()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    merge(model, random_adapter(model), keep_originals=True)
    unmerge(model)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_an_adapter_that_cannot_be_inverted_is_unmerged_from_kept_originals_only(tiny_llama):
    model, name = tiny_llama(), "model.layers.0.mlp.up_proj"
    flat = Adapter.from_parameters({name: (torch.zeros(64), torch.zeros(64))}, variant="road_1", group_size=2)
    weight = model.get_submodule(name).weight
    before = weight.clone()
    merge(model, flat)
    assert weight.eq(0).all()
    with pytest.raises(
        ModelError, match=r"cannot unmerge .*up_proj, pair 0: .*number inf.*; merge with keep_originals=True"
    ):
        unmerge(model)
    model.get_submodule(name).weight.data.copy_(before)
    merge(model, flat, keep_originals=True)
    assert weight.eq(0).all()
    unmerge(model)
    assert torch.equal(weight, before)


def test_layers_of_different_dtypes_are_each_unmerged_in_their_way(tiny_llama, random_adapter):
    model = tiny_llama()
    for layer in model.model.layers:
        layer.mlp.bfloat16()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    merge(model, random_adapter(model))
    unmerge(model)
    for name, tensor in model.state_dict().items():
        if tensor.dtype == torch.bfloat16:
            assert torch.equal(tensor, weights[name])
        else:
            torch.testing.assert_close(tensor, weights[name], rtol=1e-6, atol=1e-6)


def test_merges_stack(family, random_adapter):
    model = family()
    one, other = random_adapter(model, 1, variant="road_2"), random_adapter(model, 2, variant="road_1")
    with attached(model, one):
        after_one = outputs(model)
    with attached(model, one.then(other)):
        after_both = outputs(model)
    merge(model, one)
    merge(model, other)
    close_to(outputs(model), after_both)
    with pytest.raises(ModelError, match="was not merged last"):
        unmerge(model, one)
    unmerge(model, other)
    close_to(outputs(model), after_one, 3)
    unmerge(model, one)
    with pytest.raises(ModelError, match="nothing is merged into this model"):
        unmerge(model)


def test_attaching_to_a_merged_model_adds_to_it(tiny_qwen, random_adapter):
    model = tiny_qwen()
    one, other = random_adapter(model, 1), random_adapter(model, 2)
    with attached(model, one.then(other)):
        expected = outputs(model)
    merge(model, one)
    with attached(model, other):
        close_to(outputs(model), expected)


def test_merged_heads_are_undone(tiny_bert, random_adapter):
    model = tiny_bert(num_labels=3)
    original, plain = model.classifier.weight, outputs(model)
    adapter = random_adapter(model, layers=("query",), heads=head())
    with attached(model, adapter):
        expected = outputs(model)
    merge(model, adapter)
    close_to(outputs(model), expected)
    unmerge(model)
    assert model.classifier.weight is original
    close_to(outputs(model), plain)


@pytest.mark.parametrize("group_size", [2, 6, 12])
@pytest.mark.parametrize("columns", [1, 7])
def test_matrix_is_rotated_by_pairs_of_rows(group_size, columns, close):
    a, b = lower("road_4", *random_parameters("road_4", 12, group_size), group_size)
    for weight in (torch.randn(12, columns), torch.randn(columns, 12).t(), torch.randn(12, 2 * columns)[:, ::2]):
        expected = rotate(weight.t(), a, b, group_size).t()
        rotate_matrix_(weight, a, b, group_size)
        close(weight, expected)


def test_merging_needs_no_dense_matrix():
    """65,536 outputs of one input: a d×d matrix would take 17 GB."""
    layer = nn.Sequential(nn.Linear(1, 65536))
    adapter = Adapter.from_parameters({"0": random_parameters("road_1", 65536, 64)}, variant="road_1", group_size=64)
    with torch.no_grad():
        x = torch.randn(2, 1)
        with attached(layer, adapter):
            expected = layer(x)
        merge(layer, adapter)
        close_to(layer(x), expected)


# ---- what is refused, and leaves the model untouched -----------------------------------------------------------------


def test_tied_weights_are_not_merged(tiny_qwen):
    model = tiny_qwen()
    before = state(model)
    with pytest.raises(ModelError, match=r"cannot merge: lm_head shares its weights with model.embed_tokens.weight$"):
        merge(model, one_layer("lm_head", 256))
    assert_same_state(model, before)
    plain = outputs(model)
    with attached(model, one_layer("lm_head", 256)):
        assert not torch.equal(outputs(model), plain)


def test_quantised_layers_are_attached_to_and_not_merged_into(random_adapter, tiny_llama):
    torchao = pytest.importorskip("torchao.quantization")
    model = tiny_llama()
    adapter = random_adapter(model)
    with attached(model, adapter):
        exact = outputs(model)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    plain = outputs(model)
    with attached(model, adapter):
        rotated = outputs(model)
    assert (rotated - exact).abs().mean() < 0.2 * (rotated - plain).abs().mean()
    with pytest.raises(
        ModelError, match=r"down_proj is quantised \(Linear\): attach to it instead, or merge into the float model"
    ):
        merge(model, adapter)
    assert torch.equal(outputs(model), plain)


class Int8Linear(nn.Module):
    """As the quantised layers of other libraries look from outside."""

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features = 4, 8
        self.register_buffer("weight", torch.randint(-9, 9, (8, 4), dtype=torch.int8))

    def forward(self, x):
        return x @ self.weight.float().T


def test_integer_weights_are_not_merged_into():
    model = nn.Sequential(Int8Linear())
    with pytest.raises(ModelError, match=r"0 is quantised \(Int8Linear\)"):
        merge(model, one_layer("0", 8))
    x, adapter = torch.randn(2, 4), one_layer("0", 8)
    plain = model(x)
    with attached(model, adapter):
        torch.testing.assert_close(model(x), rotate(plain, *adapter.layer("0")))


def test_eight_bit_floats_are_not_merged_into(tiny_llama, random_adapter):
    model = tiny_llama()
    adapter = random_adapter(model)
    layer = model.model.layers[0].self_attn.q_proj
    layer.weight = nn.Parameter(layer.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ModelError, match="q_proj is quantised"):
        merge(model, adapter)


def test_weights_that_are_not_there_are_not_merged_into(tiny_llama, random_adapter):
    model = tiny_llama()
    adapter = random_adapter(model)
    with pytest.raises(ModelError, match="down_proj has no weights in memory"):
        merge(model.to("meta"), adapter)
    model = tiny_llama()
    for module in linear_layers(model).values():
        module.weight = nn.Parameter(torch.empty(0))  # as the engine leaves them
    with pytest.raises(ModelError, match="down_proj has no weights in memory"):
        merge(model, adapter)


def test_a_merge_that_runs_out_of_memory_changes_nothing(tiny_llama, random_adapter, monkeypatch):
    model = tiny_llama().to(torch.bfloat16)
    adapter = random_adapter(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    clone, calls = torch.Tensor.clone, []

    def full(tensor, *args, **options):
        calls.append(tensor)
        if len(calls) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return clone(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "clone", full)
    with pytest.raises(torch.OutOfMemoryError):
        merge(model, adapter)
    monkeypatch.undo()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ModelError, match="nothing is merged"):
        unmerge(model)
