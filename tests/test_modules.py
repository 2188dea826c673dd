from __future__ import annotations

import dataclasses
import gc
import weakref

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from roadkit import modules
from roadkit.adapter import Adapter, Base
from roadkit.errors import AdapterError, ModelError
from roadkit.models import config_fingerprint
from roadkit.modules import attach, attached, detach, linear_layers, merge, rotate_matrix_, unmerge, width_of
from roadkit.rotation import VARIANTS, rotate
from tests.conftest import TOLERANCE, random_parameters

IDS = torch.tensor([[5, 9, 200, 31, 7, 7, 64], [1, 2, 3, 4, 5, 6, 7]])
FAMILIES = ("tiny_llama", "tiny_qwen", "tiny_gemma", "tiny_gpt2", "tiny_bert")


@pytest.fixture(params=FAMILIES)
def family(request):
    """A model's builder, for each kind of architecture."""
    return request.getfixturevalue(request.param)


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS)[0]


def state(model: nn.Module) -> dict:
    """Everything that attaching might leave behind: parameters (the objects and their values), hooks, attributes."""
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict(keep_vars=True).items()}
    objects = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    hooks = {
        name: (list(module._forward_hooks), list(module._forward_pre_hooks), list(module._forward_hooks_with_kwargs))
        for name, module in model.named_modules()
    }
    return {
        "tensors": tensors,
        "objects": objects,
        "hooks": hooks,
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
    }


def assert_same_state(model: nn.Module, before: dict) -> None:
    after = state(model)
    tensors = before["tensors"]
    assert tensors.keys() == after["tensors"].keys()
    assert all(torch.equal(tensor, after["tensors"][name]) for name, tensor in tensors.items())
    for part in ("objects", "hooks", "attributes"):
        assert before[part] == after[part]


def close_to(actual: torch.Tensor, expected: torch.Tensor, scale: float = 1.0) -> None:
    """Within the table, of the size of the whole tensor: sums over a layer lose what single entries keep."""
    tolerance = TOLERANCE[expected.dtype]
    size = float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=scale * tolerance["rtol"], atol=scale * tolerance["rtol"] * size)


# ---- which layers -----------------------------------------------------------------------------------------------


def test_every_linear_layer_but_the_head_is_found(tiny_llama, tiny_gpt2, tiny_bert):
    names = set(linear_layers(tiny_llama()))
    assert len(names) == 2 * 7
    assert "model.layers.1.mlp.down_proj" in names
    assert set(linear_layers(tiny_gpt2())) == {
        f"transformer.h.{i}.{name}"
        for i in range(2)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert "pooler.dense" in linear_layers(tiny_bert())


def test_width_is_the_number_of_outputs():
    assert width_of(nn.Linear(3, 8)) == 8
    assert width_of(Conv1D(8, 3)) == 8
    assert width_of(nn.LayerNorm(8)) is None
    assert width_of(nn.Embedding(3, 8)) is None


def test_layers_read_by_weight_are_left_out():
    """`nn.MultiheadAttention` never calls its output projection, so a hook on it would do nothing."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert set(linear_layers(layer)) == {"linear1", "linear2"}


# ---- attach, detach ---------------------------------------------------------------------------------------------


def _record(model: nn.Module, found: dict) -> list:
    def record(name):
        def hook(module, args, output):
            found[name] = output.clone()

        return hook

    return [module.register_forward_hook(record(name)) for name, module in linear_layers(model).items()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_attached_layers_give_their_rotated_outputs(family, random_adapter, variant, close):
    model = family()
    adapter = random_adapter(model, variant=variant)
    plain, rotated = {}, {}
    handles = _record(model, plain)  # before the rotation, whose hook comes later
    with attached(model, adapter):
        handles += _record(model, rotated)
        outputs(model)
    for handle in handles:
        handle.remove()
    assert plain.keys() == rotated.keys() == adapter.layout.layers.keys()
    for name, h in plain.items():
        close(rotated[name], rotate(h, *adapter.layer(name)))


def test_leaving_restores_the_model_exactly(family, random_adapter):
    model = family()
    before, plain = state(model), outputs(model)
    adapter = random_adapter(model)
    with attached(model, adapter) as same:
        assert same is model
        assert (outputs(model) - plain).abs().max() > 0.05
    assert_same_state(model, before)
    assert torch.equal(outputs(model), plain)
    with pytest.raises(KeyError), attached(model, adapter):
        raise KeyError
    assert_same_state(model, before)


def test_identity_adapter_changes_nothing(family):
    model = family()
    widths = {name: width_of(module) for name, module in linear_layers(model).items()}
    parameters = {name: (torch.zeros(width // 2), torch.ones(width // 2)) for name, width in widths.items()}
    plain = outputs(model)
    with attached(model, Adapter.from_parameters(parameters, variant="road_1", group_size=16)):
        assert torch.equal(outputs(model), plain)


def test_detach_removes_everything(family, random_adapter):
    model = family()
    before = state(model)
    first = attach(model, random_adapter(model, 1))
    attach(model, random_adapter(model, 2))
    detach(model)
    assert_same_state(model, before)
    first.remove()
    detach(model)
    assert_same_state(model, before)


def test_attachments_apply_in_order(family, random_adapter):
    model = family()
    one, other = random_adapter(model, 1, variant="road_2"), random_adapter(model, 2, variant="road_2")
    with attached(model, one), attached(model, other):
        stacked = outputs(model)
    with attached(model, one.then(other)):
        close_to(outputs(model), stacked)
    with attached(model, other.then(one)):
        assert (outputs(model) - stacked).abs().max() > 0.01


def test_attachments_leave_in_any_order(tiny_llama, random_adapter):
    model = tiny_llama()
    adapters = [random_adapter(model, seed) for seed in (1, 2)]
    before = state(model)
    first, second = (attach(model, adapter) for adapter in adapters)
    first.remove()
    with attached(model, adapters[0]):
        pass
    alone = outputs(model)
    second.remove()
    with attached(model, adapters[1]):
        assert torch.equal(outputs(model), alone)
    assert_same_state(model, before)


def test_gradient_flows_through_attached_layers(tiny_llama, random_adapter):
    model = tiny_llama()
    with attached(model, random_adapter(model)):
        model(IDS).logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attached_layers_keep_the_models_dtype(tiny_llama, random_adapter, dtype):
    model = tiny_llama().to(dtype)
    plain = outputs(model)
    with attached(model, random_adapter(model)):
        rotated = outputs(model)
    assert rotated.dtype == dtype
    assert not torch.equal(rotated, plain)


class ReturnsBias(nn.Linear):
    """As Megatron's layers: (Wx, b), the caller adds."""

    def forward(self, x):
        return x @ self.weight.T, self.bias


def test_a_bias_that_is_returned_is_rotated_too(close):
    layer = nn.Sequential(ReturnsBias(4, 8))
    adapter = Adapter.from_parameters({"0": random_parameters("road_2", 8, 4)}, variant="road_2", group_size=4)
    x = torch.randn(3, 4)
    h, bias = layer(x)
    with attached(layer, adapter):
        z, rotated_bias = layer(x)
    close(z + rotated_bias, rotate(h + bias, *adapter.layer("0")))


def test_names_with_and_without_the_base_model_prefix_fit(tiny_bert, random_adapter):
    headless, classifier = tiny_bert(), tiny_bert(num_labels=3)
    adapter = random_adapter(headless)
    assert all(name.startswith(("encoder.", "pooler.")) for name in adapter.layout.layers)
    plain = outputs(classifier)
    with attached(classifier, adapter):
        assert (outputs(classifier) - plain).abs().max() > 0.01
    theirs = random_adapter(classifier, layers=("encoder",))
    assert all(name.startswith("bert.encoder.") for name in theirs.layout.layers)
    plain = outputs(headless)
    with attached(headless, theirs):
        assert (outputs(headless) - plain).abs().max() > 0.01


# ---- heads ------------------------------------------------------------------------------------------------------


def head(labels: int = 3, seed: int = 7) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "classifier": {
            "weight": torch.randn(labels, 64, generator=generator),
            "bias": torch.randn(labels, generator=generator),
        }
    }


@pytest.mark.parametrize("labels", [3, 5])
def test_heads_are_put_in_place_and_taken_out(tiny_bert, random_adapter, labels, close):
    model = tiny_bert(num_labels=3)
    before, plain = state(model), outputs(model)
    adapter = random_adapter(model, layers=("query",), heads=head(labels))
    with attached(model, adapter):
        pooled = model.bert(IDS)[1]
        expected = nn.functional.linear(pooled, *head(labels)["classifier"].values())
        close(outputs(model), expected)
    assert_same_state(model, before)
    assert torch.equal(outputs(model), plain)


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


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"score": {"weight": torch.zeros(3, 64)}}, "the model has no module 'score' for the saved head"),
        ({"classifier": {"scale": torch.zeros(3)}}, "classifier has no parameter 'scale' for the saved head"),
        (
            {"classifier": {"deep.weight": torch.zeros(3)}},
            "classifier has no parameter 'deep.weight' for the saved head",
        ),
    ],
)
def test_heads_that_do_not_fit_leave_the_model_untouched(tiny_bert, random_adapter, heads, message):
    model = tiny_bert(num_labels=3)
    before = state(model)
    adapter = random_adapter(model, layers=("query",), heads=heads)
    for operation in (attach, merge):
        with pytest.raises(AdapterError, match=message):
            operation(model, adapter)
        assert_same_state(model, before)


# ---- merge, unmerge ---------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("group_size", [2, 6, 12])
@pytest.mark.parametrize("columns", [1, 7])
def test_matrix_is_rotated_by_pairs_of_rows(group_size, columns, close):
    from roadkit.rotation import lower

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


# ---- what is refused --------------------------------------------------------------------------------------------


def one_layer(name: str, width: int, **options) -> Adapter:
    return Adapter.from_parameters(
        {name: random_parameters("road_1", width, 2)}, variant="road_1", group_size=2, **options
    )


def test_every_mismatch_is_in_one_error(tiny_llama):
    adapter = one_layer("model.layers.0.self_attn.q_proj", 96, base=Base("smollm2"))
    for name, width in (
        ("model.layers.0.self_attn.q_prj", 64),
        ("model.norm", 64),
        ("model.layers.1.mlp.up_proj", 128),
    ):
        adapter = adapter.then(one_layer(name, width))
    model = tiny_llama()
    before = state(model)
    for operation in (attach, merge):
        with pytest.raises(AdapterError) as caught:
            operation(model, adapter)
        for expected in (
            "the adapter does not fit the model: ",
            "model.layers.0.self_attn.q_proj: adapter is 96 wide, layer 64; was it trained on 'smollm2'?",
            "the model has no module 'model.layers.0.self_attn.q_prj'; did you mean 'model.layers.0.self_attn.q_proj'?",
            "model.norm is a LlamaRMSNorm, only linear layers can be rotated",
        ):
            assert expected in str(caught.value)
        assert "up_proj" not in str(caught.value)
        assert_same_state(model, before)


def test_another_models_adapter_warns(tiny_llama, random_adapter):
    model = tiny_llama()
    import dataclasses

    mine = random_adapter(model)
    fitting = dataclasses.replace(mine, base=Base("tiny", config_fingerprint(model.config)))
    with attached(model, fitting):
        pass
    other = dataclasses.replace(mine, base=Base("another", "0" * 16))
    with pytest.warns(UserWarning, match="the adapter was trained on 'another', whose configuration differs"):
        attach(model, other)


def test_tied_weights_are_not_merged(tiny_qwen):
    model = tiny_qwen()
    before = state(model)
    with pytest.raises(ModelError, match=r"cannot merge: lm_head shares its weights with model.embed_tokens.weight$"):
        merge(model, one_layer("lm_head", 256))
    assert_same_state(model, before)
    plain = outputs(model)
    with attached(model, one_layer("lm_head", 256)):
        assert not torch.equal(outputs(model), plain)


def test_one_module_under_two_names_is_rotated_once_or_refused():
    model = nn.ModuleDict({"first": nn.Linear(4, 8)})
    model["second"] = model["first"]
    x, plain = torch.randn(2, 4), model["first"]
    expected = rotate(plain(x), *one_layer("first", 8).layer("first"))
    with attached(model, one_layer("first", 8)):
        torch.testing.assert_close(model["second"](x), expected)
    both = one_layer("first", 8).then(one_layer("second", 8))
    with pytest.raises(AdapterError, match="first and second are one module, which can be rotated once only"):
        attach(model, both)
    with pytest.raises(ModelError, match="first shares its weights with second.weight$"):
        merge(model, one_layer("first", 8))


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


def test_models_are_not_kept_alive(tiny_llama, random_adapter):
    for operation in (attach, merge):
        model = tiny_llama()
        operation(model, random_adapter(model))
        gone = weakref.ref(model)
        del model
        gc.collect()
        assert gone() is None
    assert not modules._attachments


# ---- what must not happen halfway, or silently ------------------------------------------------------------------


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


def test_eight_bit_floats_are_not_merged_into(tiny_llama, random_adapter):
    model = tiny_llama()
    adapter = random_adapter(model)
    layer = model.model.layers[0].self_attn.q_proj
    layer.weight = nn.Parameter(layer.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ModelError, match="q_proj is quantised"):
        merge(model, adapter)


def test_a_head_has_no_place_on_an_offloaded_module(tiny_bert, random_adapter):
    model = tiny_bert(num_labels=2)
    adapter = random_adapter(model, layers=("query",))
    headed = dataclasses.replace(adapter, heads={"classifier": {"weight": torch.ones(2, 64)}})
    model.classifier.to("meta")
    with pytest.raises(AdapterError, match="classifier is offloaded"):
        attach(model, headed)
    with attached(model, adapter):
        pass


def test_a_backbone_is_no_layer():
    backbone = nn.Module()
    backbone.out_features = ["stage1", "stage4"]
    assert width_of(backbone) is None
