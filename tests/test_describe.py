"""Layers told apart by the place in their names."""

from __future__ import annotations

import pytest

from roadkit.analysis import geometry
from roadkit.describe import anatomy, describe, places


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        (["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "lm_head"], ["q_proj", "q_proj", "lm_head"]),
        (
            ["encoder.layer.3.attention.output.dense", "encoder.layer.3.output.dense", "encoder.layer.3.attention.self.query"],
            ["attention.output.dense", "output.dense", "query"],
        ),
        (
            ["encoder.block.0.layer.0.SelfAttention.q", "decoder.block.0.layer.0.SelfAttention.q", "decoder.block.0.layer.1.EncDec.q"],
            ["encoder.block.layer.0.SelfAttention.q", "decoder.block.layer.0.SelfAttention.q", "layer.1.EncDec.q"],
        ),
        (["0", "1"], ["0", "1"]),
    ],
    ids=["llama", "bert", "t5", "bare"],
)  # fmt: skip
def test_kinds_that_share_an_ending_are_named_further(names, kinds):
    found = places(names)
    assert [found[name][1] for name in names] == kinds
    assert len(set(found.values())) == len(names)


def test_no_layer_of_an_encoder_hides_another(tiny_bert, random_adapter):
    adapter = random_adapter(tiny_bert())
    rows = geometry.heatmap(adapter)
    assert len({(row["layer"], row["module"]) for row in rows}) == len(rows) == len(adapter.layout.layers)
    told = describe(adapter)["modules"]
    assert {told["intermediate.dense"]["width"], told["attention.output.dense"]["width"]} == {128, 64}
    cells = anatomy(adapter)["cells"]
    assert len({(cell["block"], cell["module"]) for cell in cells}) == len(cells)
