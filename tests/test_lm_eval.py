"""EleutherAI's lm-evaluation-harness: an adapter's folder as `peft=`, scored like the model it is merged into."""

from __future__ import annotations

import pytest
import torch

import roadkit as rk
from roadkit.modules import linear_layers, width_of


@pytest.fixture(scope="module")
def world(tiny_llama, tiny_tokenizer, tmp_path_factory):
    """A model, an adapter that changes what it says, and the two merged, as folders."""
    root = tmp_path_factory.mktemp("harness")
    model = tiny_llama(vocab_size=384)
    model.save_pretrained(root / "model")
    tiny_tokenizer.save_pretrained(root / "model")
    torch.manual_seed(0)
    drawn = {
        name: (torch.randn(width // 2) * 0.5, 1 + 0.1 * torch.randn(width // 2))
        for name, layer in linear_layers(model).items()
        if name != "lm_head" and (width := width_of(layer))
    }
    adapter = rk.Adapter.from_parameters(drawn, variant="road_1", group_size=16)
    adapter.save(root / "adapter")
    rk.merge(model, adapter)
    model.save_pretrained(root / "merged")
    tiny_tokenizer.save_pretrained(root / "merged")
    return root


def test_an_adapters_folder_is_scored_as_the_merged_model(world, harness):
    things = ("apple", "sky", "grass", "rose", "sea", "leaf", "brick", "lake")
    ask = harness([f"The {thing} is" for thing in things], [" red", " green", " blue"])
    base, tuned, merged = (
        ask("hf", f"dtype=float32,{options}")
        for options in (
            f"pretrained={world / 'model'}",
            f"pretrained={world / 'model'},peft={world / 'adapter'}",
            f"pretrained={world / 'merged'}",
        )
    )
    torch.testing.assert_close(torch.tensor(tuned), torch.tensor(merged), rtol=0, atol=1e-3)
    assert (torch.tensor(tuned) - torch.tensor(base)).abs().max() > 0.1
