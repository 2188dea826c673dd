"""The model card beside an adapter."""

from __future__ import annotations

from roadkit.train import run


def test_card_tells_what_was_done(make_recipe):
    result = run(make_recipe())
    text = (result.adapter / "README.md").read_text()
    assert text.startswith("---\nbase_model: ")
    assert f"{result.trainable:,} trained parameters" in text
    assert "learning_rate: 0.02" in text
