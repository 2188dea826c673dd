from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from roadkit.errors import ModelError, RequestError
from roadkit.intervene import Intervention, Subspace, capture, intervened, site
from roadkit.rotation import rotate


def photograph(model):
    hooks = [
        {key: dict(value) for key, value in vars(module).items() if "hooks" in key and isinstance(value, dict)}
        for module in model.modules()
    ]
    tensors = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    return hooks, tensors, [vars(module).keys() for module in model.modules()]


def assert_restored(model, before):
    hooks, tensors, keys = photograph(model)
    assert hooks == before[0]
    assert keys == before[2]
    for name, (pointer, tensor) in tensors.items():
        assert pointer == before[1][name][0]
        assert torch.equal(tensor, before[1][name][1])


IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])


def hand_made(model, tasks, name, columns):
    """The model with a hook that rotates `columns` of every row, written as plainly as possible."""

    def hook(module, args, output):
        h = (output[0] if isinstance(output, tuple) else output).clone()
        h[:, columns] = rotate(h[:, columns], *tasks.rotation.layer(name))
        return (h, *output[1:]) if isinstance(output, tuple) else h

    return model.get_submodule(name).register_forward_hook(hook)


@pytest.mark.parametrize("component", ["block", "attention", "mlp"])
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2"])
@torch.no_grad()
def test_intervened_is_the_rotation_at_those_positions(family, component, request, make_intervention):
    model = request.getfixturevalue(family)()
    name = site(model, 0, component)
    tasks = make_intervention("first:1+last:2", (name,))
    before = photograph(model)
    plain = model(IDS).logits
    with intervened(model, tasks):
        actual = model(IDS).logits
    assert_restored(model, before)
    assert torch.equal(model(IDS).logits, plain)
    handle = hand_made(model, tasks, name, [0, 3, 4])
    expected = model(IDS).logits
    handle.remove()
    torch.testing.assert_close(actual, expected)
    assert not torch.allclose(actual, plain, atol=1e-3)


@torch.no_grad()
def test_each_sample_of_a_batch_has_its_own(tiny_llama, make_intervention):
    model, tasks = tiny_llama(), make_intervention()
    items = [tasks.select("one"), None, make_intervention("all", ("model.layers.1",), seed=7, group_size=2)]
    ids = torch.cat([IDS, IDS[:1] + 20])
    with intervened(model, items):
        mixed = model(ids).logits
    for row, item in enumerate(items):
        with intervened(model, [item]):
            alone = model(ids[row : row + 1]).logits[0]
        torch.testing.assert_close(mixed[row], alone)


@torch.no_grad()
def test_generation_acts_on_the_prompt_only_unless_all(tiny_llama, make_intervention):
    """Decoding with a cache equals computing everything at once with the same positions."""
    model = tiny_llama()
    for text in ("last:2", "all"):
        tasks = make_intervention(text)
        with intervened(model, tasks):
            answer = model.generate(IDS[:1], max_new_tokens=6, do_sample=False, attention_mask=torch.ones(1, 5))
        with intervened(model, tasks, num_prompt=[5]):
            logits = model(answer).logits[0]
        assert logits[4:-1].argmax(dim=-1).tolist() == answer[0, 5:].tolist()


@torch.no_grad()
def test_generation_without_a_cache_acts_on_the_same_positions(tiny_llama, make_intervention):
    model = tiny_llama()
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.int64), IDS[:1, :3]], dim=1)
    ids, mask = torch.cat([IDS[:1], padded]), torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    for text in ("last:1", "first:2", "all"):
        answers = []
        for use_cache in (True, False):
            with intervened(model, make_intervention(text)):
                answers.append(model.generate(ids, attention_mask=mask, use_cache=use_cache, **options))
        assert torch.equal(*answers), text


def test_sites_are_the_decoders_blocks():
    """A vision tower may be deeper than the text model, and T5's first stack is its encoder."""
    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4}
    llava = LlavaForConditionalGeneration(LlavaConfig(
        vision_config=CLIPVisionConfig(**small, num_hidden_layers=5, image_size=8, patch_size=4),
        text_config=LlamaConfig(**small, num_hidden_layers=2, vocab_size=64),
    ))  # fmt: skip
    assert "language_model.layers.1" in site(llava, 1) and "vision" not in site(llava, 1)
    with pytest.raises(ModelError, match="blocks 0 to 1"):
        site(llava, 2)
    t5 = T5ForConditionalGeneration(T5Config(d_model=32, d_ff=32, d_kv=8, num_heads=4, num_layers=3, vocab_size=64))
    assert site(t5, 2) == "decoder.block.2"


@torch.no_grad()
def test_padding_does_not_move_positions(tiny_llama, make_intervention):
    model, tasks = tiny_llama(), make_intervention("first:1+last:1")
    with intervened(model, tasks):
        alone = model(IDS[:1]).logits[0, -1]
        padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), IDS[:1]], dim=1)
        mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
        position = torch.tensor([[0, 0, 0, 0, 1, 2, 3, 4]])
        left = model(padded, attention_mask=mask, position_ids=position).logits[0, -1]
    torch.testing.assert_close(left, alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_interchange_puts_the_source_runs_pairs_in(tiny_llama):
    model = tiny_llama()
    name, subspace = "model.layers.0", Subspace.split(64, 2, group_size=16)[0]
    (states,) = capture(model, [name], "last:1", input_ids=IDS[1:])
    assert states[name].shape == (1, 64)
    patch = Intervention.identity((name,), subspace, "last:1").interchange(states)
    with intervened(model, patch):
        (patched,) = capture(model, [name], "prompt", input_ids=IDS[:1])
    (plain,) = capture(model, [name], "prompt", input_ids=IDS[:1])
    expected = plain[name].clone()
    expected[-1, subspace.mask] = states[name][0, subspace.mask]
    assert torch.equal(patched[name], expected)


@torch.no_grad()
def test_interchange_of_everything_gives_the_source_runs_answer(tiny_llama):
    """All pairs at all positions of the last block: the rest of the model cannot tell the runs apart."""
    model = tiny_llama()
    name = site(model, 1)
    (states,) = capture(model, [name], "prompt", input_ids=IDS[1:])
    patch = Intervention.identity((name,), Subspace.whole(64, group_size=16), "prompt").interchange(states)
    with intervened(model, patch):
        torch.testing.assert_close(model(IDS[:1]).logits, model(IDS[:1]).logits)
        actual = model(IDS[:1]).logits
    torch.testing.assert_close(actual, model(IDS[1:]).logits)


def test_an_error_inside_restores_too(tiny_llama, make_intervention):
    model = tiny_llama()
    before = photograph(model)
    with pytest.raises(RequestError, match="prompt has 5 tokens, the intervention acts on its last 6"):
        with intervened(model, make_intervention("last:6")):
            model(IDS)
    assert_restored(model, before)
    with pytest.raises(KeyboardInterrupt):
        with intervened(model, make_intervention()):
            raise KeyboardInterrupt
    assert_restored(model, before)


def test_bad_input_is_named(tiny_llama, make_intervention):
    model = tiny_llama()
    with pytest.raises(ModelError, match="layer 2 does not exist, the model has blocks 0 to 1"):
        site(model, 2)
    with pytest.raises(ModelError, match="component 'head' is none of"):
        site(model, 0, "head")
    with pytest.raises(ModelError, match=r"no module 'model.layers.5'; did you mean"):
        with intervened(model, make_intervention(sites=("model.layers.5",))):
            pass
    with pytest.raises(ModelError, match="the intervention is 64 wide, the hidden states 32"):
        with intervened(tiny_llama(hidden_size=32), make_intervention()):
            pass
    with pytest.raises(RequestError, match="3 interventions for a batch of 2"):
        with intervened(model, [None, None, make_intervention()]):
            model(IDS)
    tasks = make_intervention("last:2").interchange({"model.layers.0": torch.zeros(3, 64)})
    with pytest.raises(RequestError, match="the source has 3 hidden states, the intervention acts on 2"):
        with intervened(model, tasks):
            model(IDS)
