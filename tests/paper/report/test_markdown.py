"""Scores as they stand in a table's cells."""

from __future__ import annotations

from paper.report.markdown import spread


def test_several_values_have_a_spread():
    assert spread([0.5]) == "50.0"
    assert spread([0.4, 0.6]) == "50.0 ± 14.1"
