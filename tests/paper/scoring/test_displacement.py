"""Displacement against hand-worked vectors."""

from __future__ import annotations

import pytest
import torch

from paper.scoring.displacement import cls_states, direction_change, displacement, distribution, magnitude_change


def test_three_four_five():
    x0, x = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 0.0]])
    assert float(magnitude_change(x, x0)) == pytest.approx(0.2)  # |4 − 5| / 5
    assert float(direction_change(x, x0)) == pytest.approx(0.6)  # 12 / (4 · 5)


def test_scaling_changes_length_alone_and_turning_direction_alone():
    x0 = torch.randn(3, 5, 8)
    scaled = displacement(1.5 * x0, x0)
    torch.testing.assert_close(scaled["magnitude"], torch.full((3, 5), 0.5))
    torch.testing.assert_close(scaled["direction"], torch.ones(3, 5))
    turn = torch.linalg.qr(torch.randn(8, 8)).Q
    turned = displacement(x0 @ turn, x0)
    torch.testing.assert_close(turned["magnitude"], torch.zeros(3, 5), atol=1e-6, rtol=0)
    assert float(turned["direction"].max()) < 0.999


def test_a_zero_vector_and_other_rows_are_refused():
    with pytest.raises(ValueError, match="zero"):
        magnitude_change(torch.ones(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"\(1, 2, 3\) after, \(1, 3, 3\) before"):
        displacement(torch.ones(1, 2, 3), torch.ones(1, 3, 3))


def test_states_are_the_first_token_of_every_block(tiny_bert):
    model = tiny_bert(num_labels=2)
    ids = torch.randint(5, 200, (3, 7))
    batches = [{"input_ids": ids[:2], "labels": torch.zeros(2)}, {"input_ids": ids[2:]}]
    states = cls_states(model, batches)
    assert states.shape == (2, 3, 64)
    expected = model.bert(ids).last_hidden_state[:, 0]
    torch.testing.assert_close(states[-1], expected.detach(), rtol=1e-4, atol=1e-5)


def test_quantiles_of_a_known_distribution():
    found = distribution(torch.arange(101.0).unsqueeze(0))[0]
    assert found == {"mean": 50.0, "q05": 5.0, "q25": 25.0, "q50": 50.0, "q75": 75.0, "q95": 95.0}
