"""Scales in words."""

from __future__ import annotations

from paper.report.wording import scale_of


def test_a_scale_in_words():
    assert scale_of({"scale": "full", "model": "m", "epochs": 2, "questions": 3}, 1) == (
        "full: m, 2 epochs, 3 questions a task, 1 seed"
    )


def test_sixteen_bit_runs_say_so():
    setup = {"scale": "small", "model": "m", "epochs": 1}
    assert scale_of(setup | {"bf16": True}, 1) == "small: m, 1 epoch, 16-bit arithmetic, 1 seed"
    assert scale_of(setup | {"bf16": False}, 1) == scale_of(setup, 1) == "small: m, 1 epoch, 1 seed"
