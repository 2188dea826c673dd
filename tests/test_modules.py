"""The layers of a model that an adapter rotates, attaching an adapter, and what does not fit."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from roadkit import modules
from roadkit.adapter import Adapter, Base
from roadkit.errors import AdapterError, ModelError
from roadkit.merging import merge
from roadkit.models import config_fingerprint
from roadkit.modules import attach, attached, detach, linear_layers, width_of
from roadkit.rotation import VARIANTS, rotate
from tests.conftest import random_parameters
from tests.model_state import IDS, assert_same_state, close_to, head, one_layer, outputs, state

# ---- which layers ----------------------------------------------------------------------------------------------------


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


def test_a_backbone_is_no_layer():
    backbone: Any = nn.Module()
    backbone.out_features = ["stage1", "stage4"]
    assert width_of(backbone) is None


def test_layers_read_by_weight_are_left_out():
    """`nn.MultiheadAttention` never calls its output projection, so a hook on it would do nothing."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert set(linear_layers(layer)) == {"linear1", "linear2"}


# ---- attach, detach --------------------------------------------------------------------------------------------------


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
    widths = {name: width_of(module) or 0 for name, module in linear_layers(model).items()}
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

    def forward(self, x):  # pyright: ignore[reportIncompatibleMethodOverride]
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


def test_models_are_not_kept_alive(tiny_llama, random_adapter):
    for operation in (attach, merge):
        model = tiny_llama()
        operation(model, random_adapter(model))
        gone = weakref.ref(model)
        del model
        gc.collect()
        assert gone() is None
    assert not modules._attachments


# ---- heads -----------------------------------------------------------------------------------------------------------


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


def test_a_head_has_no_place_on_an_offloaded_module(tiny_bert, random_adapter):
    model = tiny_bert(num_labels=2)
    adapter = random_adapter(model, layers=("query",))
    headed = dataclasses.replace(adapter, heads={"classifier": {"weight": torch.ones(2, 64)}})
    model.classifier.to("meta")
    with pytest.raises(AdapterError, match="classifier is offloaded"):
        attach(model, headed)
    with attached(model, adapter):
        pass


# ---- what does not fit, attached or merged ---------------------------------------------------------------------------


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
