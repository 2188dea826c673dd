"""The convention against the paper's equation and PEFT's code, and parameters that come back from vectors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roadkit.errors import AlgebraError
from roadkit.rotation import VARIANTS, check_group_size, lower, num_parameters, raise_to_parameters, rotate, swap
from tests.conftest import TOLERANCE, random_parameters

seeds = st.integers(0, 2**32 - 1)
variants = st.sampled_from(VARIANTS)
shapes = st.sampled_from([(2, 2), (6, 2), (6, 6), (24, 4), (24, 12), (64, 2), (64, 16), (64, 64), (192, 6)])  # d, g
quick = settings(max_examples=40)


def test_ninety_degrees_send_the_first_of_a_pair_to_the_second(close):
    a, b = lower("road_1", torch.tensor([math.pi / 2]), torch.ones(1), 2)
    close(rotate(torch.tensor([1.0, 0.0]), a, b, 2), torch.tensor([0.0, 1.0]))


def test_pairs_are_half_a_group_apart():
    assert swap(torch.arange(8), 4).tolist() == [2, 3, 0, 1, 6, 7, 4, 5]
    assert swap(torch.arange(8), 2).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    assert swap(torch.arange(8), 8).tolist() == [4, 5, 6, 7, 0, 1, 2, 3]


def test_road_4_is_the_equation_of_the_paper(close):
    theta, alpha = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([1.1, 1.2, 1.3, 1.4])  # 11, 22, then 12, 21
    a, b = lower("road_4", theta, alpha, 2)
    lo, hi = 5.0, 7.0
    expected = [
        1.1 * math.cos(0.1) * lo - 1.3 * math.sin(0.3) * hi,
        1.4 * math.sin(0.4) * lo + 1.2 * math.cos(0.2) * hi,
    ]
    close(rotate(torch.tensor([lo, hi]), a, b, 2), torch.tensor(expected))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_start_of_training_is_exactly_the_base_model(variant, dtype):
    count = num_parameters(variant, 24)
    a, b = lower(variant, torch.zeros(count), torch.ones(count), 6)
    h = torch.randn(5, 24).to(dtype)
    assert torch.equal(a, torch.ones(24))
    assert torch.equal(b, torch.zeros(24))
    assert torch.equal(rotate(h, a, b, 6), h)


@quick
@given(variants, shapes, seeds)
def test_lower_agrees_with_peft(variant, shape, seed):
    from peft.tuners.road.layer import _apply_road, _get_delta_weight, _prepare_cols

    width, group_size = shape
    theta, alpha = random_parameters(variant, width, group_size, seed)
    a, b = lower(variant, theta, alpha, group_size)
    cosines, sines = _prepare_cols(variant, group_size, theta, alpha)
    sign = torch.tensor([-1.0, 1.0]).repeat_interleave(group_size // 2).repeat(width // group_size)
    assert torch.equal(a, cosines)
    assert torch.equal(b, sign * sines)
    h = torch.randn(3, width)
    expected = _apply_road(variant, group_size, theta, alpha, h)
    torch.testing.assert_close(rotate(h, a, b, group_size), expected, **TOLERANCE[torch.float32])
    dense = _get_delta_weight(variant, group_size, theta.clone(), alpha.clone())
    torch.testing.assert_close(rotate(torch.eye(width), a, b, group_size).T, dense, **TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_parameters_are_lowered_in_float32(dtype):
    theta, alpha = (x.to(dtype) for x in random_parameters("road_2", 24, 6))
    assert all(map(torch.equal, lower("road_2", theta, alpha, 6), lower("road_2", theta.float(), alpha.float(), 6)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_lower_is_differentiable(variant):
    theta, alpha = (x.double().requires_grad_() for x in random_parameters(variant, 12, 4))
    assert torch.autograd.gradcheck(lambda t, s: lower(variant, t, s, 4), (theta, alpha))


@quick
@given(shapes, seeds)
def test_norm_is_kept_if_alpha_is_one(shape, seed):
    width, group_size = shape
    theta, _ = random_parameters("road_1", width, group_size, seed)
    a, b = lower("road_1", theta.double(), torch.ones(width // 2).double(), group_size)
    h = torch.randn(4, width, dtype=torch.float64)
    torch.testing.assert_close(rotate(h, a, b, group_size).norm(dim=-1), h.norm(dim=-1), **TOLERANCE[torch.float64])


def test_result_has_the_dtype_of_its_input():
    a, b = lower("road_1", *random_parameters("road_1", 8, 4), 4)
    for dtype in TOLERANCE:
        assert rotate(torch.randn(2, 8).to(dtype), a, b, 4).dtype == dtype


def test_unknown_variant_is_refused():
    with pytest.raises(AlgebraError, match="unknown variant 'road_3'; use one of road_1, road_2, road_4"):
        lower("road_3", torch.zeros(4), torch.ones(4), 2)


@pytest.mark.parametrize(
    ("width", "group_size", "message"),
    [
        (577, 64, "q: width 577 is odd, its outputs cannot be paired"),
        (96, 64, "q: width 96 is not a multiple of group_size 64; group_size=32 would fit"),
        (10, 4, "q: width 10 is not a multiple of group_size 4; group_size=2 would fit"),
        (8, 3, "q: group_size must be an even number of at least 2, got 3"),
        (8, 0, "q: group_size must be an even number of at least 2, got 0"),
        (8, -2, "q: group_size must be an even number of at least 2, got -2"),
    ],
)
def test_widths_that_cannot_be_paired_are_refused(width, group_size, message):
    with pytest.raises(AlgebraError) as caught:
        check_group_size(width, group_size, "q")
    assert str(caught.value) == message


@quick
@given(variants, shapes, seeds)
def test_parameters_of_a_lowered_adapter_lower_to_it_again(variant, shape, seed):
    width, group_size = shape
    theta, alpha = random_parameters(variant, width, group_size, seed)
    a, b = lower(variant, theta, alpha, group_size)
    smallest, theta, alpha = raise_to_parameters(a, b, group_size)
    assert smallest == "road_1" if variant == "road_1" else smallest in ("road_1", "road_2")
    assert len(theta) == len(alpha) == num_parameters(smallest, width)
    again = lower(smallest, theta, alpha, group_size)
    torch.testing.assert_close(again[0], a, rtol=0, atol=1e-6 * float(alpha.abs().max()))
    torch.testing.assert_close(again[1], b, rtol=0, atol=1e-6 * float(alpha.abs().max()))


def test_one_general_block_makes_it_road_2():
    rotations = torch.full((4,), 0.6), torch.tensor([-0.8, 0.8, -0.8, 0.8])
    rotation_and_shear = torch.tensor([0.6, 0.6, 1, 1]), torch.tensor([-0.8, 0.8, 1, 0])
    assert raise_to_parameters(*rotations, 2)[0] == "road_1"
    assert raise_to_parameters(*rotation_and_shear, 2)[0] == "road_2"
    assert raise_to_parameters(torch.zeros(2), torch.zeros(2), 2)[0] == "road_1"
