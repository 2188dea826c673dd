"""Counts are those of the published models, and a step is timed."""

from __future__ import annotations

import pytest

from paper.report.tables import result_tables
from paper.runs import size

TINY = size.ModelShape("llama", 64, 128, 2, 4, 4, 50)


def test_counts_are_the_published_models_and_one_parameter_for_each_output():
    found = size.counts(size.PUBLISHED["LLaMA 7B"])
    assert found["parameters"] == 6_738_415_616
    assert found["road_1"] == 32 * (4 * 4096 + 2 * 11008 + 4096)
    assert found["lora"] == 8 * 32 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert size.counts(size.PUBLISHED["SmolLM2 135M"])["parameters"] == 134_515_008  # embeddings counted once


def test_an_encoder_is_counted_without_its_head():
    found = size.counts(size.PUBLISHED["RoBERTa-base"])
    blocks = 12 * (4 * (768 * 768 + 768) + (768 * 3072 + 3072) + (3072 * 768 + 768) + 4 * 768)
    assert found["parameters"] == (50265 + 514 + 1 + 2) * 768 + blocks
    assert found["road_1"] == 12 * (4 * 768 + 3072 + 768)


def test_the_study_is_resumed_and_tabled(ledger):
    options = {"published": {"tiny": TINY}, "timed": (TINY,), "timing": size.StepTiming(batch=1, tokens=4, rounds=2)}
    assert size.run_size(ledger, **options) == 0
    assert size.run_size(ledger, **options) == 0
    count, step = (row["metrics"] for row in ledger.rows())
    assert count["road_1"] == step["road_1"] == 2 * (4 * 64 + 2 * 128 + 64)
    assert count["parameters"] == step["parameters"]
    assert 0 < step["ratio_min"] <= step["ratio"] <= step["ratio_max"]
    table = result_tables(ledger.rows())["size"]
    assert f"| tiny | {count['parameters']:,} | 1,152 | {1152 / count['parameters']:.3%}".replace("%", " % |") in table
    assert "random weights, 1 rows of 4 tokens, medians of 2 rounds" in table
    assert "| width 64, 2 blocks |" in table


def test_the_floor_and_the_step_stand_on_the_same_weights():
    base = TINY.build()
    same = size._sharing(base)
    assert all(a is b for a, b in zip(base.parameters(), same.parameters(), strict=True))
    assert same.model.layers[0] is not base.model.layers[0]


@pytest.mark.parametrize("name", size.PUBLISHED)
def test_every_published_shape_fits_the_group_size(name):
    shape = size.PUBLISHED[name]
    widths = {shape.hidden, shape.intermediate, shape.hidden // shape.heads * shape.kv_heads}
    assert not [width for width in widths if width % shape.recipe.group_size]
