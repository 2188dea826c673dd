"""What plain transformers answers, to compare the engine's answers with."""

from __future__ import annotations

import torch

from roadkit import modules
from roadkit.adapter import Adapter
from roadkit.engine.engine import Engine
from roadkit.engine.request import Completion
from roadkit.expression import compose
from tests.conftest import TOLERANCE

VOCAB = 384
PAGE_BYTES = 2 * 16 * 2 * 16 * 4 * 2  # of tiny_llama: keys and values, positions, heads, head_dim, bytes, layers
NAMES = ["one", None, "two*0.5", "one + two", "-one", "two"]


def prompt(seed: int, length: int = 9) -> list[int]:
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def meaning(name: str | None, adapters) -> Adapter | None:
    """What an expression of `NAMES` composes."""
    return None if name is None else compose(name, adapters)


def forward(model, adapter: Adapter | None, token_ids: list[int]) -> torch.Tensor:
    """Plain transformers' logits [tokens, vocab], the adapter attached."""
    with torch.no_grad():
        if adapter is None:
            return model(torch.tensor([token_ids])).logits[0]
        with modules.attached(model, adapter):
            return model(torch.tensor([token_ids])).logits[0]


def generate(model, adapter: Adapter | None, token_ids: list[int], count: int, **options) -> list[int]:
    """What plain transformers answers, greedily, the adapter attached."""
    options = {"max_new_tokens": count, "do_sample": False, "attention_mask": torch.ones(1, len(token_ids))} | options
    if adapter is None:
        return model.generate(torch.tensor([token_ids]), **options)[0, len(token_ids) :].tolist()
    with modules.attached(model, adapter):
        return model.generate(torch.tensor([token_ids]), **options)[0, len(token_ids) :].tolist()


def assert_greedy(
    model, adapter: Adapter | None, token_ids: list[int], completion: Completion, gap: float = 1e-3
) -> None:
    """Every token is plain transformers' best next one, or within `gap` of its logit."""
    assert completion.finish_reason in ("length", "stop"), completion
    logits = forward(model, adapter, token_ids + completion.token_ids)[len(token_ids) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(completion.token_ids).unsqueeze(1)).squeeze(1)
    lost = (logits.max(dim=1).values - chosen).max()
    assert lost < gap, f"a token was chosen whose logit is {lost:.3g} below the best"


def assert_same(actual: list[Completion], expected: list[Completion]) -> None:
    assert [item.token_ids for item in actual] == [item.token_ids for item in expected]
    assert [(item.text, item.finish_reason) for item in actual] == [
        (item.text, item.finish_reason) for item in expected
    ]


def close_to(actual, expected) -> None:
    actual, expected = torch.tensor(actual), torch.as_tensor(expected)
    tolerance, size = TOLERANCE[torch.float32], float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=tolerance["rtol"], atol=tolerance["rtol"] * size)


def nothing_held(engine: Engine) -> bool:
    cache = engine.scheduler.cache
    idle = not engine.scheduler.running and not engine.scheduler.waiting
    return idle and cache.num_free == cache.num_pages and not engine.bank.num_held
