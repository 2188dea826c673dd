"""AlpacaEval's files come back, and the win rate is worked out by hand."""

from __future__ import annotations

import json
import math

import pytest

from paper.scoring import alpaca
from roadkit.errors import RecipeError


def test_outputs_come_back_and_a_wrong_form_is_named(tmp_path):
    path = tmp_path / "outputs.json"
    alpaca.write_outputs(path, [{"instruction": "Hi", "reference_output": "x"}], ["Hello"], generator="mine")
    assert alpaca.read_outputs(path) == [{"instruction": "Hi", "output": "Hello", "generator": "mine"}]
    path.write_text(json.dumps([{"instruction": "Hi"}]))
    with pytest.raises(RecipeError, match="entry 0 has no output, generator"):
        alpaca.read_outputs(path)
    path.write_text("{}")
    with pytest.raises(RecipeError, match="a list of objects is wanted, this is a dict"):
        alpaca.read_outputs(path)


def test_win_rate_by_hand(tmp_path):
    path = tmp_path / "annotations.json"
    entries = [{"instruction": "a", "preference": value} for value in (1, 2, 1.5, None)]
    path.write_text(json.dumps(entries))
    assert alpaca.win_rate(alpaca.read_annotations(path)) == 0.5
    older = [{"instruction": "a", "preference": value} for value in (0, 2, math.nan)]  # a draw, a win, undecided
    path.write_text(json.dumps(older))
    assert alpaca.win_rate(alpaca.read_annotations(path)) == 0.75
    path.write_text(json.dumps([{"instruction": "a", "preference": 3}]))
    with pytest.raises(RecipeError, match="entry 0: preference must lie between 1 and 2, got 3"):
        alpaca.read_annotations(path)
    with pytest.raises(RecipeError, match="decided none"):
        alpaca.win_rate([{"preference": None}])
