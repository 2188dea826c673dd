"""Rows within what the model can read; what is cut is counted and said."""

from __future__ import annotations

import logging

import pytest

from roadkit.errors import RecipeError
from roadkit.train import run


def test_truncation_is_counted(make_recipe, caplog):
    with caplog.at_level(logging.WARNING):
        result = run(make_recipe(max_length=40))
    assert 0 < result.truncated < 12
    assert result.dropped > 0
    assert f"{result.truncated} of" in caplog.text


def test_too_long_for_the_model_is_refused(make_recipe):
    with pytest.raises(RecipeError, match="max_length 600 exceeds the 512 tokens"):
        run(make_recipe(max_length=600))
