"""The layer by itself: rows of a mixed batch, merging, and the kinds of base layers that it goes around."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn

from roadkit.errors import AdapterError, AlgebraError, ModelError
from roadkit.peft_layer import RoadLinear
from roadkit.peft_tuner import disable_peft, enable_peft
from roadkit.rotation import VARIANTS, rotate
from tests.peft_models import adapted, layers, road, soften


@pytest.fixture(autouse=True)
def enabled():
    enable_peft()
    yield
    disable_peft()


@pytest.fixture
def ids():
    return torch.randint(3, 250, (4, 9))


def test_mixed_layer_equals_each_row_alone_exactly():
    model = get_peft_model(nn.Sequential(nn.Linear(16, 64)), road(target_modules=["0"]), adapter_name="one")
    model.add_adapter("two", road(target_modules=["0"], variant="road_2"))
    model.eval()
    h = layers(model)[0]
    x = torch.randn(3, 5, 16)
    with torch.no_grad():
        mixed = h(x, adapter_names=["two", "__base__", "one"])
        assert torch.equal(mixed[1], h.base_layer(x)[1])
        for row, name in [(0, "two"), (2, "one")]:
            alone = h(x, adapter_names=[name] * 3)
            assert torch.equal(mixed[row], alone[row])


# ---- merging ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen", "tiny_gpt2"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_merge_equals_forward_and_unmerge_undoes_it(family, variant, ids, request, close):
    base = request.getfixturevalue(family)()
    before = copy.deepcopy(base.state_dict())
    with torch.no_grad():
        model = adapted(base, road(variant=variant), road())
        model.base_model.set_adapter(["one", "two"])
        expected = model(input_ids=ids).logits
        model.merge_adapter(safe_merge=True)
        assert all(layer.merged_adapters == ["one", "two"] for layer in layers(model))
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
        model.unmerge_adapter()
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
    for name, value in model.get_base_model().state_dict().items():
        if name.replace(".base_layer", "") in before:
            close(value, before[name.replace(".base_layer", "")])


def test_merge_and_unload_gives_a_plain_model(tiny_gpt2, ids):
    with torch.no_grad():
        model = adapted(tiny_gpt2(), road(variant="road_2"))
        expected = model(input_ids=ids).logits
        plain = model.merge_and_unload()
        torch.testing.assert_close(plain(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert not layers(plain)


def test_disabling_a_merged_adapter_unmerges_it(tiny_llama, ids):
    base = tiny_llama()
    with torch.no_grad():
        plain = base(input_ids=ids).logits
        model = adapted(base, road())
        model.merge_adapter()
        with model.disable_adapter():
            torch.testing.assert_close(model(input_ids=ids).logits, plain, rtol=1e-4, atol=1e-5)
    assert not any(layer.merged for layer in layers(model))


def test_16_bit_weights_are_rounded_once():
    """Two merged adapters and their unmerging stay within a rounding of the storage each."""
    model = get_peft_model(nn.Sequential(nn.Linear(16, 64)).bfloat16(), road(target_modules=["0"]), adapter_name="one")
    model.add_adapter("two", road(target_modules=["0"], variant="road_2"))
    layer = layers(soften(model))[0]
    original = layer.base_layer.weight.detach().clone()
    exact = original.double()
    for name in ("one", "two"):
        a, b, size = layer._lowered(name)
        exact = rotate(exact.t(), a.double(), b.double(), size).t()
    layer.merge(adapter_names=["one", "two"])
    assert torch.equal(layer.base_layer.weight, exact.bfloat16())
    layer.unmerge()
    rounding = torch.finfo(torch.bfloat16).eps
    assert (layer.base_layer.weight - original).norm() <= 2 * rounding * original.norm()


def test_safe_merge_refuses_nan_and_changes_nothing(tiny_qwen):
    model = adapted(tiny_qwen(), road())
    layer = layers(model)[0]
    before = layer.base_layer.weight.detach().clone()
    layer.road_alpha["one"].data[3] = torch.nan
    with pytest.raises(AdapterError, match="NaNs detected in the merged weights. The adapter one seems to be broken"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, before) and not layer.merged


def test_a_singular_block_is_not_unmerged_silently(tiny_llama):
    model = adapted(tiny_llama(), road())
    *_, last = layers(model)
    last.road_alpha["one"].data[3] = 0
    model.merge_adapter()
    merged = copy.deepcopy(model.state_dict())
    with pytest.raises(AlgebraError, match=r"layers\.1\.mlp\.down_proj: adapter 'one', pair 3: .*cannot be inverted"):
        model.unmerge_adapter()
    assert all(torch.equal(value, merged[name]) for name, value in model.state_dict().items())
    assert all(layer.merged_adapters == ["one"] for layer in layers(model))


def test_unmerging_twice_warns(tiny_llama):
    layer = layers(adapted(tiny_llama(), road()))[0]
    with pytest.warns(UserWarning, match="Already unmerged"):
        layer.unmerge()


# ---- base layers ------------------------------------------------------------------------------------------------


def test_gpt2_trains(tiny_gpt2, ids):
    model = get_peft_model(tiny_gpt2(), road(target_modules=["c_attn", "c_proj", "c_fc"]))
    assert {type(layer.base_layer).__name__ for layer in layers(model)} == {"Conv1D"}
    found = losses(model, ids)
    assert found[-1] < found[0]


def losses(model, ids, steps=4):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    found = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_bfloat16_base_trains_float32_adapters(tiny_llama, ids):
    model = get_peft_model(tiny_llama().bfloat16(), road(init_weights=True))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    found = losses(model, ids)
    assert found[-1] < found[0]


def test_gradient_checkpointing_changes_nothing(tiny_llama, ids, close):
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        model = soften(get_peft_model(tiny_llama(), road())).train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=ids, labels=ids).loss.backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, other in zip(*found, strict=True):
        close(one, other)


@pytest.fixture
def int8(tiny_llama):
    torchao = pytest.importorskip("torchao.quantization")

    def make(config):
        model = tiny_llama()
        torchao.quantize_(model, getattr(torchao, config)(version=2))
        return model

    return make


def test_int8_base_trains_as_its_float_copy_does(int8, tiny_llama, ids):
    quantised, copied = int8("Int8WeightOnlyConfig"), tiny_llama()
    for name, module in quantised.named_modules():
        if isinstance(module, nn.Linear):
            copied.get_submodule(name).weight.data = module.weight.dequantize().float()
    config = road(init_weights=True)
    results = [losses(get_peft_model(model, config), ids) for model in (quantised, copied)]
    assert results[0][-1] < results[0][0]
    assert results[0] == pytest.approx(results[1], rel=1e-3)


def test_int8_base_refuses_merging_before_anything_is_changed(int8):
    model = get_peft_model(int8("Int8WeightOnlyConfig"), road())
    for merge in (model.merge_adapter, model.merge_and_unload, layers(model)[0].merge):
        with pytest.raises(ModelError, match="base weights stored as Int8Tensor would be rounded again"):
            merge()
    assert not any(layer.merged for layer in layers(model))


def test_a_base_that_passes_no_gradient_back_is_refused(int8, ids):
    model = get_peft_model(int8("Int8DynamicActivationInt8WeightConfig"), road()).train()
    with pytest.raises(ModelError, match="passes no gradient back"):
        model(input_ids=ids)
    with torch.no_grad():
        model.eval()(input_ids=ids)


def test_lora_around_road(tiny_llama, ids):
    """The paper's multimodal recipe, z = R(Wx) + BAx: RoAd injected first, LoRA around it."""
    model: Any = get_peft_model(tiny_llama(), road()).base_model.model
    with pytest.warns(UserWarning, match="Already found a `peft_config`"):
        model = inject_adapter_in_model(LoraConfig(r=2, target_modules=["down_proj"]), model, adapter_name="lora")
    layer = next(module for name, module in model.named_modules() if name.endswith("down_proj"))
    assert isinstance(layer.base_layer, RoadLinear)
    assert model(input_ids=ids, labels=ids).loss.isfinite()
