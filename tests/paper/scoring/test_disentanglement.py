"""A probe that sees lengths or directions alone."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch

from paper.scoring.disentanglement import PARTS, Probe, first_layer


def test_output_is_magnitude_times_angle():
    x, weight = torch.randn(4, 6), torch.randn(5, 6)
    output, magnitude, angle = (first_layer(x, weight, part) for part in PARTS)
    torch.testing.assert_close(output, magnitude * angle)
    torch.testing.assert_close(first_layer(7 * x, weight, "angle"), angle)
    turn = torch.linalg.qr(torch.randn(6, 6)).Q
    torch.testing.assert_close(first_layer(x @ turn, weight, "magnitude"), magnitude)


def test_magnitude_cannot_tell_directions_apart_and_angle_can():
    labels = torch.arange(64) % 2
    x = torch.randn(64, 4).abs() * (2 * labels - 1).unsqueeze(1)
    x = x / x.norm(dim=1, keepdim=True)  # all of one length
    right = {}
    for part in ("magnitude", "angle"):
        torch.manual_seed(0)
        probe = Probe(4, 2, part=part)
        optimizer = torch.optim.Adam(probe.parameters(), lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            probe(x, labels)["loss"].backward()
            optimizer.step()
        right[part] = float((probe(x)["logits"].argmax(-1) == labels).float().mean())
    assert right["angle"] > 0.95
    assert right["magnitude"] == 0.5


def test_regression_loss_is_the_mean_square():
    probe = Probe(4, 1, part="output")
    x, labels = torch.randn(3, 4), torch.tensor([1.0, 2.0, 3.0])
    with torch.no_grad():
        found = probe(x, labels)
    expected = ((found["logits"].squeeze(-1) - labels) ** 2).mean()
    assert math.isclose(float(found["loss"]), float(expected), rel_tol=1e-6)
    with pytest.raises(ValueError, match="'length'"):
        Probe(4, 1, part=cast(Any, "length"))
