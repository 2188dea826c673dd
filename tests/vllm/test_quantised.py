"""A quantised base: the rotation stands behind the product, whatever the product is.

The checkpoints are what llm-compressor writes; vLLM's CPU kernels run 8-bit weights and inputs, and 4-bit weights.
"""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from roadkit.modules import linear_layers
from tests.vllm.tiny import ask, expected_logits, logits_of, lora_request, prompts_of, tokens_of

GROUP = 32  # columns that share a scale, 4 bits


def _int8(weight):
    """[out, in] → the stored tensors and what they stand for: 8 bits, one scale a row; inputs are rounded too."""
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    levels = (weight / scale).round().clamp(-127, 127)
    return {"weight": levels.to(torch.int8), "weight_scale": scale}, levels * scale


def _int4(weight):
    """The same for 4 bits, one scale for `GROUP` columns, eight weights in an int32."""
    rows, columns = weight.shape
    grouped = weight.view(rows, -1, GROUP)
    scale = (grouped.abs().amax(dim=2) / 7).bfloat16().float()  # as the kernel will read it
    levels = (grouped / scale[..., None]).round().clamp(-8, 7)
    nibbles = (levels + 8).to(torch.int64).view(rows, columns // 8, 8) << (4 * torch.arange(8))
    packed = nibbles.sum(dim=2)
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
    stored = {"weight_packed": packed, "weight_scale": scale, "weight_shape": torch.tensor([rows, columns])}
    return stored, (levels * scale[..., None]).view(rows, columns)


def _scheme(bits: int, **weights) -> dict:
    return {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False, **weights}


KINDS = {
    "int8": (_int8, "int-quantized", _scheme(8, strategy="channel"), _scheme(8, strategy="token") | {"dynamic": True}),
    "int4": (_int4, "pack-quantized", _scheme(4, strategy="group", group_size=GROUP), None),
}


def _quantise(tiny, kind, folder):
    """Write the checkpoint; returns the model that it stands for, its inputs rounded if the checkpoint says so."""
    pack, layout, weights, inputs = KINDS[kind]
    model = copy.deepcopy(tiny.model)
    tensors = dict(model.state_dict())
    for name, layer in linear_layers(model).items():
        stored, exact = pack(tensors.pop(f"{name}.weight").float())
        tensors |= {f"{name}.{key}": value for key, value in stored.items()}
        layer.weight.data = exact
        if inputs is not None:
            layer.register_forward_pre_hook(_round_inputs)
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return model


def _round_inputs(layer: nn.Module, args: tuple) -> tuple:
    scale = args[0].abs().amax(dim=-1, keepdim=True) / 127
    return ((args[0] / scale).round() * scale,)


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_batch_on_a_quantised_base(serve, tiny, adapters, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_INT4_W4A8", "0")  # else vLLM rounds the inputs of 4-bit weights too, in its own way
    base = _quantise(tiny("qwen"), kind, tmp_path)
    made = adapters("qwen")
    llm = serve(str(tmp_path), dtype="bfloat16")  # what vLLM's quantised kernels for the CPU take
    names = {type(module.quant_method).__name__ for module in _layers(llm)}
    assert names == {"CompressedTensorsLinearMethod"}, names
    halved = copy.deepcopy(base).bfloat16()
    requests = [*(lora_request(each, i + 1) for i, each in enumerate(made)), None]
    prompts = prompts_of(len(requests))
    for prompt, each, answer in zip(prompts, [*made, None], ask(llm, prompts, requests, tokens=4), strict=True):
        adapter, token_ids = each.adapter if each else None, prompt + tokens_of(answer)
        exact = expected_logits(base, adapter, token_ids)
        lost = (expected_logits(halved, adapter, token_ids) - exact).abs()
        ours = (logits_of(answer) - exact).abs()
        assert ours.mean() <= 1.5 * lost.mean() and ours.max() <= 2 * lost.max(), (ours.mean(), lost.mean())


def _layers(llm):
    model = llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
    return [module for module in model.modules() if hasattr(module, "roadkit_rotation")]
