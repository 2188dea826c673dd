"""Shards, merged layers and refusals by name, on layer objects without an engine; and two ranks against one."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from roadkit.adapter import Adapter
from roadkit.errors import AdapterError
from roadkit.vllm_plugin.sharding import ModelSurvey, Shard, ShardedLayer, _shards
from tests.vllm.tiny import (
    TOLERANCE,
    ask,
    assert_close,
    expected_logits,
    expected_tokens,
    logits_of,
    lora_request,
    prompts_of,
    tokens_of,
)


def _linear(kind: str, **fields) -> Any:
    return type(kind, (), fields)()


def _qkv(rank: int, size: int, *, heads=8, key_heads=4, head_size=32):
    replicas = max(1, size // key_heads)
    return _linear(
        "QKVParallelLinear",
        tp_rank=rank,
        tp_size=size,
        head_size=head_size,
        v_head_size=head_size,
        total_num_heads=heads,
        total_num_kv_heads=key_heads,
        num_heads=heads // size,
        num_kv_heads=max(1, key_heads // size),
        num_kv_head_replicas=replicas,
    )


NAMES = ["q_proj", "k_proj", "v_proj"]


def shards_of(layer, names: list[str], *, in_order: bool = False) -> tuple[Shard, ...]:
    found = _shards(layer, names, in_order=in_order)
    assert found is not None
    return found


def test_qkv_is_cut_by_heads():
    shards = _shards(_qkv(1, 2), NAMES, in_order=False)
    assert shards == (Shard("q_proj", 256, 128, 128), Shard("k_proj", 128, 64, 64), Shard("v_proj", 128, 64, 64))


def test_ranks_share_a_key_head_if_there_are_more_ranks_than_heads():
    shards = [shards_of(_qkv(rank, 4, key_heads=2), NAMES)[1] for rank in range(4)]
    assert [shard.start for shard in shards] == [0, 0, 32, 32] and {shard.width for shard in shards} == {32}


@pytest.mark.parametrize("size", [1, 2, 4])
def test_shards_cover_every_row_once(size):
    for name, width in zip(NAMES, (256, 128, 128), strict=True):
        rows = []
        for rank in range(size):
            (shard,) = [shard for shard in shards_of(_qkv(rank, size), NAMES) if shard.name == name]
            rows += range(shard.start, shard.start + shard.width)
        assert rows == list(range(width))


@pytest.mark.parametrize("in_order", [True, False], ids=["known order", "unknown order"])
def test_fused_checkpoint(serve, make_adapter, monkeypatch, tmp_path, in_order):
    """Phi-3 keeps q, k, v and gate, up in one layer each: served if the order of the rows is known, else refused."""
    from transformers import Phi3Config, Phi3ForCausalLM

    config = Phi3Config(
        vocab_size=256, hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    base = Phi3ForCausalLM(config).eval()
    base.save_pretrained(tmp_path)
    if not in_order:
        monkeypatch.setattr("roadkit.vllm_plugin.sharding.FUSED_IN_ORDER", ())
    made = [make_adapter(base, variant, size, seed=46) for variant, size in (("road_1", 64), ("road_4", 2))]
    llm, prompts = serve(str(tmp_path)), prompts_of(3)
    requests = [*(lora_request(each, i + 1) for i, each in enumerate(made)), None]
    if not in_order:
        with pytest.raises(
            AdapterError, match=r"layers.0.self_attn.qkv_proj is fused in the checkpoint, .* may permute"
        ):
            ask(llm, prompts, requests)
        return
    for prompt, each, answer in zip(prompts, [*made, None], ask(llm, prompts, requests, tokens=4), strict=True):
        expected = expected_logits(base, each.adapter if each else None, prompt + tokens_of(answer))
        assert_close(logits_of(answer), expected, TOLERANCE[torch.float32])


def test_fused_checkpoint_layer_is_refused_unless_its_order_is_known():
    fused = _qkv(1, 2)
    assert _shards(fused, ["qkv_proj"], in_order=False) is None
    shards = shards_of(fused, ["qkv_proj"], in_order=True)
    assert [shard.start for shard in shards] == [128, 256 + 64, 384 + 64] and {
        shard.full_width for shard in shards
    } == {512}


def test_merged_column_and_row_layers():
    merged = _linear("MergedColumnParallelLinear", tp_rank=1, tp_size=2, output_sizes=[96, 96])
    assert shards_of(merged, ["gate_proj", "up_proj"])[1] == Shard("up_proj", 96, 48, 48)
    row = _linear("RowParallelLinear", tp_rank=1, tp_size=2, output_size=64)
    assert _shards(row, ["o_proj"], in_order=False) == (Shard("o_proj", 64, 0, 64),)


def test_pair_that_crosses_a_shard_is_refused_with_a_group_size_that_fits():
    shard = Shard("up_proj", 96, 48, 48)
    found = ModelSurvey(
        layers={"gate_up_proj": ShardedLayer(SimpleNamespace(), (shard,), ())},
        shards={"up_proj": [("gate_up_proj", 0)]},
        group_sizes=(32,),
    )
    adapter = Adapter.from_parameters({"up_proj": (torch.zeros(48), torch.ones(48))}, variant="road_1", group_size=32)
    with pytest.raises(
        AdapterError, match=r"group_size 32 cuts a pair, this rank holds rows 48 to 96 of 96; group_size=16"
    ):
        found.check(adapter, {"up_proj": "up_proj"})


def test_narrow_neighbour_in_the_same_layer_is_named():
    shards = shards_of(_qkv(1, 2), NAMES)  # 128, 64 and 64 rows on this rank
    found = ModelSurvey(
        layers={"qkv_proj": ShardedLayer(SimpleNamespace(), shards, (64,))},
        shards={name: [("qkv_proj", i)] for i, name in enumerate(NAMES)},
        group_sizes=(64, 128),
    )
    made = {
        size: Adapter.from_parameters(
            {"q_proj": (torch.zeros(128), torch.ones(128))}, variant="road_1", group_size=size
        )
        for size in (64, 128)
    }
    found.check(made[64], {"q_proj": "q_proj"})
    with pytest.raises(AdapterError, match=r"q_proj: group_size 128 cuts a pair of k_proj, .* group_size=64 would fit"):
        found.check(made[128], {"q_proj": "q_proj"})


def test_layers_of_other_pipeline_ranks_are_left_to_them():
    found = ModelSurvey(absent=["model.layers.0"], group_sizes=(2,))
    adapter = Adapter.from_parameters(
        {"model.layers.0.mlp.up_proj": (torch.zeros(2), torch.ones(2))}, variant="road_1", group_size=2
    )
    names = {name: name for name in adapter.layout.layers}
    found.check(adapter, names)
    with pytest.raises(AdapterError, match="no linear layer"):
        ModelSurvey(absent=["model.layers.1"], group_sizes=(2,)).check(adapter, names)


RANKS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from tests.vllm.tiny import started, lora_request, Made
from vllm import SamplingParams
if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    sizes = {"additional_config": {"roadkit": {"group_sizes": [64, 2, 128]}}}
    with started(given["model"], tensor_parallel_size=2, max_loras=8, distributed_executor_backend="mp", **sizes) as llm:
        try:
            llm.llm_engine.add_lora(lora_request(Made(*given["wide"], None), 100))
            print("WIDE accepted")
        except Exception as error:
            print(f"WIDE {error}")
        requests = [lora_request(Made(*each, None), i + 1) for i, each in enumerate(given["adapters"])] + [None]
        parameters = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
        prompts = [{"prompt_token_ids": prompt} for prompt in given["prompts"]]
        answers = llm.generate(prompts, parameters, lora_request=requests, use_tqdm=False)
        print("TOKENS " + json.dumps([list(answer.outputs[0].token_ids) for answer in answers]), flush=True)
"""


def test_two_ranks_give_the_tokens_of_one(tiny, adapters, make_adapter, tmp_path):
    """And an adapter that does not fit the ranks is refused without a trace: the next one is loaded and served."""
    kind = "qwen"  # with biases and without
    made = adapters(kind)
    prompts = prompts_of(len(made) + 1)
    wide = make_adapter(tiny(kind).model, "road_1", 128, seed=30)  # cuts k_proj's pairs, 128 rows over two ranks
    given = {
        "model": tiny(kind).path,
        "adapters": [[each.name, each.path] for each in made],
        "wide": [wide.name, wide.path],
        "prompts": prompts,
    }
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    command = [sys.executable, str(script), str(Path(__file__).parents[2]), json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True)
    (refused,) = [line.partition("WIDE ")[2] for line in done.stdout.splitlines() if "WIDE " in line] or [done.stderr]
    assert "group_size 128 cuts a pair" in refused and "group_size=64 would fit" in refused
    lines = [line for line in done.stdout.splitlines() if "TOKENS " in line]
    assert lines, done.stderr[-3000:]
    answers = json.loads(lines[0].partition("TOKENS ")[2])
    for prompt, each, tokens in zip(prompts, [*made, None], answers, strict=True):
        assert tokens == expected_tokens(tiny(kind).model, each.adapter if each else None, prompt, 8)
