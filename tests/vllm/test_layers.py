"""The rotation behind a layer's product, on vLLM's own layer classes: bias inside, bias returned, other products."""

from typing import Any

import pytest
import torch

from roadkit.adapter import Adapter
from roadkit.rotation import rotate
from roadkit.vllm_plugin.layers import WorkerBank
from roadkit.vllm_plugin.sharding import ModelSurvey, Shard, ShardedLayer
from tests.vllm.tiny import TOLERANCE, assert_close


class _Linear(torch.nn.Module):
    """The part of a vLLM linear layer that the plugin touches, with its forward method's shape (`linear.py`, 0.32)."""

    def __init__(self, *, skip_bias_add: bool, method):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(64, 16))
        self.bias = torch.nn.Parameter(torch.randn(64))
        self.skip_bias_add, self.quant_method = skip_bias_add, method

    def forward(self, x):
        out = self.quant_method.apply(self, x, None if self.skip_bias_add else self.bias)
        return out, self.bias if self.skip_bias_add else None


class _Product:
    def __init__(self, scale: float):
        self.scale = scale

    def apply(self, layer, x, bias=None):
        return torch.nn.functional.linear(x, layer.weight * self.scale, bias)


@pytest.mark.parametrize("skip_bias_add", [False, True], ids=["bias added", "bias returned"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@torch.no_grad()
def test_output_and_bias_are_rotated(skip_bias_add, compiled):
    method = _Product(2.0)
    layer = _Linear(skip_bias_add=skip_bias_add, method=method)
    found = ModelSurvey(
        layers={"x": ShardedLayer(layer, (Shard("x", 64, 0, 64),), (2, 64))},
        shards={"x": [("x", 0)]},
        group_sizes=(2, 64),
    )
    x = torch.randn(5, 16)
    plain: Any = sum(part for part in layer(x) if part is not None)
    bank = WorkerBank(found, slots=2, max_tokens=8, device="cpu")
    assert isinstance(layer.quant_method, _Product) and type(layer.quant_method).__name__ == "_Product"
    assert layer.state_dict().keys() == {"weight", "bias"}
    made = []
    for slot, (variant, size) in enumerate([("road_1", 64), ("road_4", 2)], 1):
        count = {"road_1": 32, "road_4": 128}[variant]
        adapter = Adapter.from_parameters(
            {"x": (torch.randn(count), torch.randn(count))}, variant=variant, group_size=size
        )
        bank.write(slot, bank.row(adapter, {"x": "x"}))
        made.append(adapter)
    bank.assign([0, 1, 2, 1, 0])
    run = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer
    z: Any = sum(part for part in run(x) if part is not None)
    for i, slot in enumerate([0, 1, 2, 1, 0]):
        expected = rotate(plain[i], *made[slot - 1].layer("x")) if slot else plain[i]
        assert_close(z[i], expected, TOLERANCE[torch.float32])


def test_mixture_of_experts_is_refused_by_name(serve, tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM
    from vllm.lora.request import LoRARequest

    from tests.vllm.tiny import ask, prompts_of

    config = MixtralConfig(
        vocab_size=256, hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(0)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "moe")
    llm = serve(str(tmp_path / "moe"))  # loaded but not run: with LoRA enabled, vLLM's experts need Triton (0.32)
    names = [
        "model.layers.0.block_sparse_moe.gate",
        "model.layers.0.block_sparse_moe.experts.1.w1",
        "model.layers.0.self_attn.q_proj",
    ]
    for i, name in enumerate(names):
        parameters = {name: (torch.zeros(64), torch.ones(64))}
        Adapter.from_parameters(parameters, variant="road_1", group_size=2).save(tmp_path / f"a{i}")
        request = LoRARequest(f"a{i}", i + 1, str(tmp_path / f"a{i}"))
        if "block_sparse_moe" in name:
            with pytest.raises(ValueError, match=f"{name} is part of a mixture-of-experts block"):
                ask(llm, prompts_of(1), [request], tokens=2)
        else:
            assert llm.llm_engine.add_lora(request)
