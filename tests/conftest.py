"""What every test may use: a seed, the one tolerance table, and tiny random models that need no network.

    def test_merge_equals_forward(close, tiny_llama):
        model = tiny_llama()        # a fresh one at each call, with the same weights
        close(actual, expected)

Importing `TOLERANCE` is for tests that need one dtype's entry by itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # bits are compared, and models go to a GPU by themselves

import hypothesis
import pytest
import torch
from torch import Tensor, nn

torch.set_num_threads(1)  # tiny models: a second thread only waits, and for long where cores are shared
hypothesis.settings.register_profile("roadkit", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("roadkit")

TOLERANCE: dict[torch.dtype, dict[str, Any]] = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-10},
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    torch.float16: {"rtol": 5e-3, "atol": 5e-3},
    torch.bfloat16: {"rtol": 3e-2, "atol": 2e-2},
}

SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.1,  # the usual 0.02 leaves two layers so near to linear that wrong outputs look right
}
TOKENS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def close():
    """`close(actual, expected)`: equal within the table, by the coarser of the two dtypes."""

    def check(actual: Tensor, expected: Tensor) -> None:
        coarser = max(actual.dtype, expected.dtype, key=lambda dtype: TOLERANCE[dtype]["rtol"])
        torch.testing.assert_close(actual.double(), expected.double(), **TOLERANCE[coarser])

    return check


def _fresh(build, config, seed: int):
    """A model with weights that depend on `seed` alone, biases included (they start at zero, which would hide them)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = build(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_llama():
    """Llama: grouped-query attention, no biases. Arguments override the configuration."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(seed: int = 0, **changes):
        sizes: dict[str, Any] = (
            SIZES | TOKENS | {"num_key_value_heads": 2, "intermediate_size": 128, "max_position_embeddings": 512}
        )
        return _fresh(LlamaForCausalLM, LlamaConfig(**sizes | changes), seed)

    return make


@pytest.fixture(scope="session")
def tiny_qwen():
    """Qwen2: as Llama, with biases on q, k and v, and tied embeddings."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    def make(seed: int = 0, **changes):
        sizes: dict[str, Any] = SIZES | TOKENS | {"num_key_value_heads": 2, "intermediate_size": 128}
        sizes |= {"max_position_embeddings": 512, "tie_word_embeddings": True}
        return _fresh(Qwen2ForCausalLM, Qwen2Config(**sizes | changes), seed)

    return make


@pytest.fixture(scope="session")
def tiny_gemma():
    """Gemma 3: one layer of sliding and one of full attention, norms on q and k, a head size of its own."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    def make(seed: int = 0, **changes):
        sizes: dict[str, Any] = (
            SIZES | TOKENS | {"num_key_value_heads": 2, "intermediate_size": 128, "max_position_embeddings": 512}
        )
        own: dict[str, Any] = {
            "head_dim": 32,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        }
        return _fresh(Gemma3ForCausalLM, Gemma3TextConfig(**sizes | own | changes), seed)

    return make


@pytest.fixture(scope="session")
def tiny_gpt2():
    """GPT-2: `Conv1D` layers with biases, learned positions, tied embeddings."""
    from transformers import GPT2Config, GPT2LMHeadModel

    def make(seed: int = 0, **changes):
        sizes: dict[str, Any] = SIZES | TOKENS | {"n_positions": 512}
        return _fresh(GPT2LMHeadModel, GPT2Config(**sizes | changes), seed)

    return make


@pytest.fixture(scope="session")
def tiny_bert():
    """BERT, an encoder; with `num_labels` one that classifies."""
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    def make(seed: int = 0, num_labels: int | None = None, **changes):
        sizes: dict[str, Any] = SIZES | {"intermediate_size": 128, "max_position_embeddings": 128, "pad_token_id": 0}
        if num_labels is None:
            return _fresh(BertModel, BertConfig(**sizes | changes), seed)
        sizes |= {"num_labels": num_labels}
        return _fresh(BertForSequenceClassification, BertConfig(**sizes | changes), seed)

    return make


@pytest.fixture(params=["tiny_llama", "tiny_qwen", "tiny_gemma", "tiny_gpt2", "tiny_bert"])
def family(request):
    """A model's builder, for each kind of architecture."""
    return request.getfixturevalue(request.param)


def random_parameters(variant: str, width: int, group_size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """θ and α of a layer, far from the identity; `group_size` is named so that calls read like the layer's."""
    from roadkit.rotation import num_parameters

    assert width % group_size == 0, f"width {width}, group_size {group_size}"
    generator = torch.Generator().manual_seed(seed)
    theta, alpha = torch.randn(2, num_parameters(variant, width), generator=generator)
    return 0.7 * theta, 1 + 0.2 * alpha


@pytest.fixture(scope="session")
def random_adapter():
    """`random_adapter(model, seed, ...)`: rotates every linear layer (or those whose name contains one of `layers`)."""
    from roadkit.adapter import Adapter
    from roadkit.modules import linear_layers, width_of

    def make(model: nn.Module, seed: int = 0, *, variant="road_1", group_size=16, layers=("",), heads=None) -> Adapter:
        parameters = {
            name: random_parameters(variant, width_of(module) or 0, group_size, seed=1000 * seed + index)
            for index, (name, module) in enumerate(linear_layers(model).items())
            if any(part in name for part in layers)
        }
        return Adapter.from_parameters(parameters, variant=variant, group_size=group_size, heads=heads)

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level tokenizer of 384 tokens: 3 special ones, 256 bytes, and pieces of a few words. For `vocab_size=384`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True) for token in ("<pad>", "<s>", "</s>")]
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = (
        "the quick brown fox jumps over the lazy dog while thousands of adapters turn pairs of outputs in one batch, "
        "every request answered as if it were alone; angles and scales are learned, composed, inverted and merged for their users. "
    )
    tokenizer.train_from_iterator([text * 4], trainer)
    assert tokenizer.get_vocab_size() == 384
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture
def placed(monkeypatch):
    """The devices that models were loaded to, in order, on a machine whose best one is called cpu:0."""
    from roadkit import models

    found: list[str | None] = []
    for name in ("load_causal", "load_encoder"):
        load = getattr(models, name)

        def spy(*args, load=load, **options):
            found.append(options.get("device"))
            return load(*args, **options)

        monkeypatch.setattr(models, name, spy)
    monkeypatch.setattr(models, "best_device", lambda asked=None: asked or "cpu:0")
    return found


@pytest.fixture
def harness(tmp_path):
    """`harness(starts, choices)(model, arguments)`: lm-evaluation-harness's log-likelihoods of each choice after each start."""
    lm_eval = pytest.importorskip("lm_eval")

    def task_of(starts: Sequence[str], choices: Sequence[str]):
        rows = [{"start": start, "label": i % len(choices)} for i, start in enumerate(starts)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = {
            "task": "ours", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
            "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{start}}",
            "doc_to_choice": list(choices), "doc_to_target": "label", "metric_list": [{"metric": "acc"}],
        }  # fmt: skip
        (tmp_path / "ours.yaml").write_text(json.dumps(task))  # JSON is YAML
        return ask

    def ask(model: str, arguments: str) -> list[list[float]]:
        from lm_eval.tasks import TaskManager

        found = lm_eval.simple_evaluate(
            model=model, model_args=arguments, tasks=["ours"], batch_size=1, device="cpu", bootstrap_iters=0,
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        )  # fmt: skip
        assert "acc,none" in found["results"]["ours"]
        return [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in found["samples"]["ours"]]

    return task_of
