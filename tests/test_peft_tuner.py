"""roadkit's layer inside PEFT: the same numbers and files as PEFT's own RoAd layer, several adapters, mixed batches."""

import functools

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    RoadConfig,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.road.layer import Linear as PeftRoadLinear
from torch import nn

from roadkit.errors import AdapterError, ModelError
from roadkit.peft_layer import RoadLinear
from roadkit.peft_tuner import disable_peft, enable_peft
from roadkit.rotation import VARIANTS, rotate
from tests.peft_models import adapted, layers, road, soften

GROUP_SIZES = [2, 8, 32]


@pytest.fixture(autouse=True)
def enabled():
    enable_peft()
    yield
    disable_peft()


@pytest.fixture
def ids():
    return torch.randint(3, 250, (4, 9))


# ---- agreement with PEFT ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen"])  # without and with biases
def test_same_logits_and_gradients_as_peft(variant, group_size, family, ids, request, close):
    make = request.getfixturevalue(family)
    config = road(variant=variant, group_size=group_size)
    disable_peft()
    theirs = soften(get_peft_model(make(), config))
    enable_peft()
    ours = get_peft_model(make(), config)
    ours.load_state_dict(theirs.state_dict())
    assert {type(layer) for layer in layers(theirs)} == {PeftRoadLinear}
    assert {type(layer) for layer in layers(ours)} == {RoadLinear}
    outputs = [model(input_ids=ids, labels=ids) for model in (ours, theirs)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=0, atol=1e-5)
    for output in outputs:
        output.loss.backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.requires_grad == expected[name].requires_grad
        if parameter.requires_grad:
            ours_grad, theirs_grad = parameter.grad, expected[name].grad
            assert ours_grad is not None
            assert theirs_grad is not None
            scale = 10 * theirs_grad.abs().max()
            close(ours_grad / scale, theirs_grad / scale)


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_adapters_move_both_ways(ours_first, variant, tiny_llama, ids, tmp_path):
    switches = [enable_peft, disable_peft] if ours_first else [disable_peft, enable_peft]
    switches[0]()
    first = soften(get_peft_model(tiny_llama(), road(variant=variant))).eval()
    first.save_pretrained(tmp_path)
    switches[1]()
    second = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    assert type(layers(first)[0]) is not type(layers(second)[0])
    saved, loaded = get_peft_model_state_dict(first), get_peft_model_state_dict(second)
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    with torch.no_grad():
        torch.testing.assert_close(first(input_ids=ids).logits, second(input_ids=ids).logits, rtol=0, atol=1e-5)


def test_enable_and_disable_are_idempotent(tiny_llama):
    for switch, expected in [(enable_peft, RoadLinear), (disable_peft, PeftRoadLinear), (enable_peft, RoadLinear)]:
        switch()
        switch()
        assert type(layers(get_peft_model(tiny_llama(), road()))[0]) is expected


def test_other_methods_are_left_alone(tiny_llama):
    assert not layers(get_peft_model(tiny_llama(), LoraConfig(target_modules="all-linear")))


def test_starts_at_the_base_model_exactly(tiny_llama, ids):
    base = tiny_llama()
    with torch.no_grad():
        expected = base(input_ids=ids).logits
        assert torch.equal(get_peft_model(base, road(init_weights=True))(input_ids=ids).logits, expected)


def test_inject_adapter_in_model_builds_our_layer(tiny_llama, ids):
    model = inject_adapter_in_model(road(), tiny_llama())
    state = {name: torch.full_like(value, 0.5) for name, value in get_peft_model_state_dict(model).items()}
    set_peft_model_state_dict(model, state)
    assert {type(layer) for layer in layers(model)} == {RoadLinear}
    assert all((layer.road_theta["default"] == 0.5).all() for layer in layers(model))


def test_a_layer_that_is_not_linear_is_refused():
    model = nn.Sequential(nn.Conv2d(4, 4, 3))
    with pytest.raises(ModelError, match=r"Target module Conv2d\(4, 4.* is not supported"):
        get_peft_model(model, RoadConfig(target_modules=["0"], group_size=2))


@pytest.mark.parametrize("group_size", [64, 4])
def test_a_width_that_the_group_size_does_not_divide_is_refused(group_size):
    with pytest.raises(ValueError, match=rf"must be divisible by group_size \({group_size}\)"):
        get_peft_model(nn.Sequential(nn.Linear(10, 30)), RoadConfig(target_modules=["0"], group_size=group_size))


def test_the_base_layer_can_be_watched(tiny_llama, ids):
    """Its output may be overwritten only if nobody looks."""
    model = soften(get_peft_model(tiny_llama(), road()))
    layer, seen, inputs = layers(model)[0], [], []
    model(input_ids=ids)
    handles = [layer.base_layer.register_forward_hook(lambda module, args, output: seen.append(output))]
    handles += [layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))]
    model(input_ids=ids)
    for handle in handles:
        handle.remove()
    assert torch.equal(seen[0], layer.base_layer(inputs[0]))


def test_selective_checkpointing_may_keep_the_base_layers_outputs(tiny_llama, ids, close):
    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

    layer = layers(soften(get_peft_model(tiny_llama(), road())))[0]
    x = torch.randn(3, 64, requires_grad=True)

    def policy(context, operator, *args, **kwargs):
        keep = operator == torch.ops.aten.mm.default
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    actual = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False, context_fn=contexts).square().sum(), x)
    close(actual[0], torch.autograd.grad(layer(x).square().sum(), x)[0])


# ---- several adapters -------------------------------------------------------------------------------------------


def test_active_adapters_apply_in_order(tiny_llama, ids, close):
    model = adapted(
        tiny_llama(), road(variant="road_2", target_modules=["down_proj"]), road(target_modules=["down_proj"])
    )
    layer = layers(model)[0]
    model.base_model.set_adapter(["one", "two"])
    x = torch.randn(3, 128)
    h = layer.base_layer(x)
    for name in ("one", "two"):
        a, b, size = layer._lowered(name)
        h = rotate(h, a, b, size)
    close(layer(x), h)
    model.base_model.set_adapter(["two", "one"])
    assert not torch.allclose(layer(x), h, atol=1e-3)


def test_disable_set_and_delete_adapter(tiny_llama, ids):
    base = tiny_llama()
    with torch.no_grad():
        plain = base(input_ids=ids).logits
        model = adapted(base, road(), road(variant="road_4"))
        one = model(input_ids=ids).logits
        with model.disable_adapter():
            assert torch.equal(model(input_ids=ids).logits, plain)
        model.set_adapter("two")
        other = model(input_ids=ids).logits
        assert not torch.allclose(one, other) and not torch.allclose(one, plain)
        model.set_adapter("one")
        model.delete_adapter("two")
        assert torch.equal(model(input_ids=ids).logits, one)
    assert all(layer.variant.keys() == layer.group_size.keys() == {"one"} for layer in layers(model))


def test_only_the_active_adapter_trains(tiny_llama, ids):
    model = adapted(tiny_llama(), road(), road())
    model.set_adapter("two")
    model(input_ids=ids, labels=ids).loss.backward()
    assert all((p.grad is not None) == name.endswith(".two") for name, p in model.named_parameters() if "road_" in name)


# ---- mixed batches ----------------------------------------------------------------------------------------------


MIXED = [road(), road(variant="road_2", group_size=32), road(variant="road_4"), road(target_modules=["q_proj"])]
NAMES = ["three", "__base__", "one", "four", "two", "one"]


def each_alone(model, ids, names):
    """Every row's logits from a batch in which its adapter serves all rows."""
    outputs = []
    for row, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter():
                outputs.append(model(input_ids=ids).logits[row])
        else:
            model.set_adapter(name)
            outputs.append(model(input_ids=ids).logits[row])
    return torch.stack(outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mixed_batch_equals_each_row_alone(dtype, tiny_llama, close):
    ids = torch.randint(3, 250, (len(NAMES), 9))
    model = adapted(tiny_llama().to(dtype), *MIXED)
    with torch.no_grad():
        expected = each_alone(model, ids, NAMES)
        mixed = model(input_ids=ids, adapter_names=NAMES).logits
    assert mixed.dtype == dtype
    scale = expected.abs().max()
    close(mixed / scale, expected / scale)
    assert (mixed - expected[:1]).abs().max() > 0.1  # the rows do differ


def test_mixed_batch_sees_changed_parameters(tiny_llama, ids):
    model = adapted(tiny_llama(), road(), road())
    names = ["one", "two", "__base__", "two"]
    with torch.no_grad():
        before = model(input_ids=ids, adapter_names=names).logits
        for layer in layers(model):
            layer.road_theta["two"].data.add_(0.3)  # unseen by the version counter
        after = model(input_ids=ids, adapter_names=names).logits
    changed = (before != after).flatten(1).any(1)
    assert changed.tolist() == [False, True, False, True]


def test_mixed_generation_equals_each_alone(tiny_llama):
    ids = torch.randint(3, 250, (3, 6))
    model = adapted(tiny_llama(), road(), road(variant="road_2"))
    names = ["two", "__base__", "one"]
    options = {"max_new_tokens": 5, "do_sample": False, "min_new_tokens": 5}
    together = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), adapter_names=names, **options)
    for row, name in enumerate(names):
        alone = model.generate(
            input_ids=ids[row : row + 1], attention_mask=torch.ones(1, 6).long(), adapter_names=[name], **options
        )
        assert torch.equal(together[row], alone[0])


def test_mixed_batch_in_eval_mode_has_gradients(tiny_llama, ids):
    """PEFT's layer has them."""
    model = adapted(tiny_llama(), road(), road())
    model.set_adapter("one")
    model(input_ids=ids, labels=ids, adapter_names=["one", "__base__", "one", "two"]).loss.backward()
    assert all(layer.road_theta["one"].grad.abs().sum() > 0 for layer in layers(model))


def test_mixed_batch_is_refused_as_peft_refuses_it(tiny_llama, ids):
    model = adapted(tiny_llama(), road(), road())
    with pytest.raises(AdapterError, match="Length of `adapter_names` should be the same as the number of inputs"):
        model(input_ids=ids, adapter_names=["one"])
    with pytest.raises(AdapterError, match=r"non-existing adapter\(s\): x, y"):
        model(input_ids=ids, adapter_names=["y", "x", "one", "__base__"])
    model.train()
    with pytest.raises(AdapterError, match="when the model is in training mode"):
        model(input_ids=ids, adapter_names=["one"] * 4)
    model.eval()
    model.merge_adapter(["one"])
    with pytest.raises(AdapterError, match="when there are merged adapters"):
        model(input_ids=ids, adapter_names=["one"] * 4)


def test_a_failed_mixed_batch_leaves_no_hooks(tiny_llama, ids):
    model = adapted(tiny_llama(), road(), road())
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with pytest.raises(AdapterError):
            model(input_ids=ids, adapter_names=["one"])
        assert torch.equal(model(input_ids=ids).logits, expected)
    assert not any(layer._forward_pre_hooks for layer in layers(model))


# ---- trainers ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sft_trainer_trains_our_layer(tiny_llama, tmp_path):
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    rows = datasets.Dataset.from_list([{"input_ids": torch.randint(3, 250, (12,)).tolist()} for _ in range(8)])
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to="none", use_cpu=True,
        learning_rate=5e-3, save_strategy="no", bf16=False,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=tiny_llama(), args=arguments, train_dataset=rows, peft_config=road(init_weights=True),
        processing_class=tokenizer(),
    )  # fmt: skip
    trainer.train()
    assert {type(layer) for layer in layers(trainer.model)} == {RoadLinear}
    assert all(layer.road_theta["default"].abs().sum() > 0 for layer in layers(trainer.model))
    trainer.save_model(str(tmp_path / "adapter"))
    disable_peft()
    assert type(layers(PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter"))[0]) is PeftRoadLinear


def tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(253))])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
