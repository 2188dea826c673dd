"""`rotate_trainable` against plain autograd through `rotation`: every variant, both ways of computing, all dtypes."""

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from roadkit.errors import AdapterError, AlgebraError
from roadkit.kernels import gradient
from roadkit.kernels.gradient import rotate_blocks, rotate_trainable
from roadkit.rotation import VARIANTS, lower, num_parameters, rotate

WAYS = ["native", "torch"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Once with the C kernels, once without."""
    if request.param == "torch":
        monkeypatch.setattr(gradient, "_functions", dict)
    elif not gradient._functions():
        pytest.skip("no C compiler")
    return request.param


def parameters(variant, d, *, dtype=torch.float32, spread=0.3):
    count = num_parameters(variant, d)
    theta = torch.randn(count, dtype=dtype) * spread
    alpha = 1 + torch.randn(count, dtype=dtype) * spread / 3
    return theta.requires_grad_(), alpha.requires_grad_()


def plain(h, theta, alpha, *, variant, group_size):
    return rotate(h, *lower(variant, theta, alpha, group_size), group_size)


def gradients(function, h, theta, alpha, g, **options):
    z = function(h, theta, alpha, **options)
    return z, *torch.autograd.grad(z, (h, theta, alpha), g)


def compare(h, theta, alpha, g, *, close, **options):
    """Forward and all gradients; sums over rows are compared relative to their largest entry."""
    actual = gradients(rotate_trainable, h, theta, alpha, g, **options)
    expected = gradients(plain, h, theta, alpha, g, **options)
    assert [x.dtype for x in actual] == [x.dtype for x in expected]
    close(actual[0], expected[0])
    close(actual[1], expected[1])
    for ours, theirs in zip(actual[2:], expected[2:], strict=True):
        scale = theirs.abs().max().clamp_min(1e-6)
        close((ours / scale).to(h.dtype), (theirs / scale).to(h.dtype))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("d", "group_size"), [(12, 2), (12, 6), (64, 64), (24, 24)])
def test_gradcheck_in_float64(variant, d, group_size):
    theta, alpha = parameters(variant, d, dtype=torch.float64)
    h = torch.randn(2, d, dtype=torch.float64, requires_grad=True)

    def function(h, theta, alpha):
        return rotate_trainable(h, theta, alpha, variant=variant, group_size=group_size)

    assert torch.autograd.gradcheck(function, (h, theta, alpha))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("d", "group_size"), [(12, 2), (70, 2), (12, 6), (64, 8), (128, 32), (192, 64), (84, 28), (96, 96), (1100, 1100)]
)
def test_equals_plain_autograd(variant, d, group_size, way, close):
    theta, alpha = parameters(variant, d)
    h, g = torch.randn(3, 50, d, requires_grad=True), torch.randn(3, 50, d)
    compare(h, theta, alpha, g, variant=variant, group_size=group_size, close=close)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("d", "group_size"), [(12, 6), (192, 64), (2304, 2), (1152, 1152)])
def test_16_bit_activations_with_float32_parameters(variant, dtype, d, group_size, way, close):
    theta, alpha = parameters(variant, d, spread=0.1)
    h, g = torch.randn(2, 40, d, dtype=dtype, requires_grad=True), torch.randn(2, 40, d, dtype=dtype)
    compare(h, theta, alpha, g, variant=variant, group_size=group_size, close=close)


def test_16_bit_parameters_get_16_bit_gradients(way):
    theta, alpha = (x.detach().bfloat16().requires_grad_() for x in parameters("road_1", 64))
    rotate_trainable(torch.randn(5, 64), theta, alpha, variant="road_1", group_size=64).sum().backward()
    assert theta.grad is not None
    assert alpha.grad is not None
    assert theta.grad.dtype == alpha.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("variant", VARIANTS)
def test_starts_at_the_identity_exactly(variant, way):
    count = num_parameters(variant, 64)
    h = torch.randn(7, 64)
    z = rotate_trainable(h, torch.zeros(count), torch.ones(count), variant=variant, group_size=16)
    assert torch.equal(z, h)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("small", [0.0, 1e-5, -1e-4])
def test_scales_at_and_near_zero(variant, small, way, close):
    theta, alpha = parameters(variant, 64)
    with torch.no_grad():
        alpha[3] = alpha[40 % alpha.numel()] = small
    h, g = torch.randn(20, 64, requires_grad=True), torch.randn(20, 64)
    compare(h, theta, alpha, g, variant=variant, group_size=32, close=close)
    assert torch.equal(kept(h, theta, alpha, variant), h)


@pytest.mark.parametrize("variant", ["road_2", "road_4"])
def test_a_badly_conditioned_block_keeps_the_input(variant, way, close):
    theta, alpha = parameters(variant, 64)
    with torch.no_grad():
        alpha[5] = 1e-3 * alpha[5]
        theta[5] = 0.3
    h, g = torch.randn(20, 64, requires_grad=True), torch.randn(20, 64)
    assert torch.equal(kept(h, theta, alpha, variant), h)
    compare(h, theta, alpha, g, variant=variant, group_size=32, close=close)


def saved_tensors(z: Any) -> tuple:
    """What the backward pass of z holds."""
    return z.grad_fn.saved_tensors


def kept(h, theta, alpha, variant, group_size=32):
    """The one large tensor that the backward pass holds."""
    z = rotate_trainable(h, theta, alpha, variant=variant, group_size=group_size)
    large, *others = saved_tensors(z)
    assert all(other.numel() <= theta.numel() for other in others)
    return large


@pytest.mark.parametrize("variant", VARIANTS)
def test_keeps_the_output_and_nothing_else_of_its_size(variant, way):
    theta, alpha = parameters(variant, 64)
    h = torch.randn(20, 64, requires_grad=True)
    z = rotate_trainable(h, theta, alpha, variant=variant, group_size=32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        z = rotate_trainable(h, theta, alpha, variant=variant, group_size=32)
    large = [x for x in saved if x.numel() == h.numel()]
    assert [x.data_ptr() for x in large] == [z.data_ptr()]
    assert not [value for value in vars(z.grad_fn).values() if isinstance(value, torch.Tensor)]


def test_a_16_bit_output_is_trusted_less(way):
    theta, alpha = parameters("road_2", 64, spread=0.0)
    with torch.no_grad():
        alpha[0] = 8.0  # condition number 8: fine in float32 and float16, too noisy in bfloat16
    kept_output = {}
    for dtype in DTYPES:
        h = torch.randn(4, 64, dtype=dtype, requires_grad=True)
        kept_output[dtype] = not torch.equal(kept(h, theta, alpha, "road_2"), h)
    assert kept_output == {torch.float32: True, torch.float16: True, torch.bfloat16: False}


def test_a_later_change_in_place_is_noticed(way):
    theta, alpha = parameters("road_1", 64)
    z = rotate_trainable(torch.randn(5, 64), theta, alpha, variant="road_1", group_size=32)
    loss = z.sum()
    z.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reusing_the_input_changes_nothing_but_memory(variant, dtype, way, close):
    theta, alpha = parameters(variant, 64, spread=0.1)
    x, g = torch.randn(90, 64, dtype=dtype, requires_grad=True), torch.randn(90, 64, dtype=dtype)

    def after_a_layer(x, theta, alpha, **options):
        return rotate_trainable(x * 2, theta, alpha, variant=variant, group_size=16, **options)

    plain_z = gradients(after_a_layer, x, theta, alpha, g)
    reused = gradients(after_a_layer, x, theta, alpha, g, reuse=True)
    assert all(torch.equal(one, other) for one, other in zip(plain_z, reused, strict=True))
    h = x * 2
    z = rotate_trainable(h, theta, alpha, variant=variant, group_size=16, reuse=True)
    assert (z.data_ptr() == h.data_ptr()) == (way == "native")
    with torch.no_grad():
        h = x * 2
        z = rotate_trainable(h, theta, alpha, variant=variant, group_size=16, reuse=True)
        close(z, plain_z[0])


@pytest.mark.parametrize("case", ["needed by the gradient", "a leaf", "a view", "not contiguous"])
def test_an_input_that_must_stay_is_not_reused(case, way, close):
    theta, alpha = parameters("road_2", 64)
    if case == "needed by the gradient":
        with torch.no_grad():
            alpha[3] = 0
    x = torch.randn(20, 64, requires_grad=True)
    h = {"a leaf": lambda: x, "a view": lambda: (x * 2).view(2, 10, 64), "not contiguous": lambda: (x.t() * 2).t()}
    h = h.get(case, lambda: x * 2)()
    before = h.detach().clone()
    z = rotate_trainable(h, theta, alpha, variant="road_2", group_size=16, reuse=True)
    assert torch.equal(h, before)
    g = torch.randn_like(z)
    ours = torch.autograd.grad(z, (x, theta, alpha), g, retain_graph=True)
    theirs = torch.autograd.grad(plain(h, theta, alpha, variant="road_2", group_size=16), (x, theta, alpha), g)
    for one, other in zip(ours, theirs, strict=True):
        close(one / 10, other / 10)


@pytest.mark.parametrize("singular", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_blocks_are_rotated_and_differentiated_each_with_its_own(variant, singular, way, close):
    own = [parameters(variant, 64, spread=0.1) for _ in range(3)]
    if singular:
        with torch.no_grad():
            own[1][1][5] = 0
    rows = (2, 1, 4)
    x = torch.randn(7, 5, 64, requires_grad=True)
    g = torch.randn_like(x)
    blocks = [(count, *vectors) for count, vectors in zip(rows, own, strict=True)]
    leaves = (x, *(vector for vectors in own for vector in vectors))
    z = rotate_blocks(x * 2, blocks, variant=variant, group_size=16)
    actual = torch.autograd.grad(z, leaves, g)
    parts = [
        rotate_trainable(part * 2, *vectors, variant=variant, group_size=16)
        for part, vectors in zip(x.split(rows), own, strict=True)
    ]
    close(z, torch.cat(parts))
    for one, other in zip(actual, torch.autograd.grad(torch.cat(parts), leaves, g), strict=True):
        close(one / 10, other / 10)


def test_blocks_must_cover_the_rows():
    theta, alpha = parameters("road_1", 8)
    with pytest.raises(AdapterError, match="the blocks have 2 rows together, h has 3"):
        rotate_blocks(torch.randn(3, 8), [(2, theta, alpha)], variant="road_1", group_size=8)


def test_non_contiguous_input_and_gradient(way, close):
    theta, alpha = parameters("road_4", 64)
    h = torch.randn(64, 6, 5).permute(1, 2, 0).requires_grad_()
    g = torch.randn(64, 5, 6).permute(2, 1, 0)
    assert not h.is_contiguous() and not g.is_contiguous()
    compare(h, theta, alpha, g, variant="road_4", group_size=64, close=close)
    one = torch.ones(()).expand(6, 5, 64)  # what sum().backward() hands down
    compare(h, theta, alpha, one, variant="road_4", group_size=64, close=close)


@pytest.mark.parametrize("variant", VARIANTS)
def test_empty_batch(variant, way):
    theta, alpha = parameters(variant, 64)
    h = torch.randn(0, 7, 64, requires_grad=True)
    z = rotate_trainable(h, theta, alpha, variant=variant, group_size=8)
    z.sum().backward()
    assert z.shape == h.shape
    for x in (h, theta, alpha):
        assert x.grad is not None
        assert x.grad.shape == x.shape
        assert not x.grad.any()


def test_frozen_parameters_keep_no_activation(way, close):
    theta, alpha = (x.detach() for x in parameters("road_2", 64))
    h, g = torch.randn(9, 64, requires_grad=True), torch.randn(9, 64)
    z = rotate_trainable(h, theta, alpha, variant="road_2", group_size=8)
    assert saved_tensors(z)[0] is None
    (ours,) = torch.autograd.grad(z, h, g)
    (theirs,) = torch.autograd.grad(plain(h, theta, alpha, variant="road_2", group_size=8), h, g)
    close(ours, theirs)


def test_input_without_gradient(way, close):
    """The first layers of a model with frozen embeddings."""
    theta, alpha = parameters("road_1", 64)
    h, g = torch.randn(9, 64), torch.randn(9, 64)
    ours = torch.autograd.grad(rotate_trainable(h, theta, alpha, variant="road_1", group_size=8), (theta, alpha), g)
    theirs = torch.autograd.grad(plain(h, theta, alpha, variant="road_1", group_size=8), (theta, alpha), g)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_without_gradients_nothing_is_recorded(way):
    theta, alpha = parameters("road_1", 64)
    with torch.no_grad():
        assert rotate_trainable(torch.randn(5, 64), theta, alpha, variant="road_1", group_size=8).grad_fn is None


def test_accumulates_over_micro_batches(way, close):
    theta, alpha = parameters("road_2", 64)
    h = torch.randn(12, 64)
    for part in h.split(4):
        rotate_trainable(part, theta, alpha, variant="road_2", group_size=8).square().sum().backward()
    accumulated, theta.grad = theta.grad, None
    rotate_trainable(h, theta, alpha, variant="road_2", group_size=8).square().sum().backward()
    assert accumulated is not None
    assert theta.grad is not None
    close(accumulated / 100, theta.grad / 100)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant, way, close):
    theta, alpha = parameters("road_1", 64)
    weight = torch.randn(64, 64)

    def layer(x):
        return torch.tanh(rotate_trainable(x @ weight, theta, alpha, variant="road_1", group_size=8))

    x = torch.randn(10, 64, requires_grad=True)
    expected = torch.autograd.grad(layer(layer(x)).sum(), (x, theta, alpha))
    y = checkpoint(layer, checkpoint(layer, x, use_reentrant=reentrant), use_reentrant=reentrant)
    y.sum().backward()
    for ours, theirs in zip((x.grad, theta.grad, alpha.grad), expected, strict=True):
        close(ours, theirs)


def test_autocast_leaves_the_parameters_in_float32(way, close):
    theta, alpha = parameters("road_1", 64)
    linear = torch.nn.Linear(32, 64)
    x = torch.randn(10, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = rotate_trainable(linear(x), theta, alpha, variant="road_1", group_size=8)
    assert z.dtype == torch.bfloat16
    z.float().sum().backward()
    assert theta.grad is not None
    assert theta.grad.dtype == torch.float32
    close(z, plain(linear(x).bfloat16(), theta, alpha, variant="road_1", group_size=8))


def test_compiles_without_a_graph_break(close):
    variant = "road_4"
    theta, alpha = parameters(variant, 64)
    h, g = torch.randn(9, 64, requires_grad=True), torch.randn(9, 64)
    compiled = torch.compile(rotate_trainable, backend="aot_eager", fullgraph=True)
    actual = gradients(compiled, h, theta, alpha, g, variant=variant, group_size=16)
    expected = gradients(plain, h, theta, alpha, g, variant=variant, group_size=16)
    for ours, theirs in zip(actual, expected, strict=True):
        close(ours, theirs)


def test_second_derivatives_are_refused(way):
    theta, alpha = parameters("road_1", 64)
    z = rotate_trainable(torch.randn(5, 64), theta, alpha, variant="road_1", group_size=8)
    (gradient,) = torch.autograd.grad(z.square().sum(), theta, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_sums_do_not_depend_on_the_number_of_threads():
    theta, alpha = parameters("road_2", 192)
    h, g = torch.randn(700, 192, requires_grad=True), torch.randn(700, 192)
    results = []
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            results.append(gradients(rotate_trainable, h, theta, alpha, g, variant="road_2", group_size=64))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_both_ways_agree_on_what_to_keep():
    if not gradient._functions():
        pytest.skip("no C compiler")
    for seed in range(40):
        torch.manual_seed(seed)
        theta, alpha = parameters("road_2", 8, spread=0.6)
        h = torch.randn(2, 8)
        options = {"variant": "road_2", "group_size": 8, "trains": True, "out": None}
        ways = [way(h, theta.detach(), alpha.detach(), **options) for way in _WAYS]
        assert ways[0][1] == ways[1][1], seed


_WAYS = (gradient._forward_native, gradient._forward_torch)


def test_a_default_dtype_of_float64_changes_nothing(close):
    theta, alpha = parameters("road_1", 64)
    h, g = torch.randn(9, 64, requires_grad=True), torch.randn(9, 64)
    expected = gradients(plain, h, theta, alpha, g, variant="road_1", group_size=8)
    torch.set_default_dtype(torch.float64)
    try:
        actual = gradients(rotate_trainable, h, theta, alpha, g, variant="road_1", group_size=8)
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(actual, expected, strict=True):
        close(ours, theirs)


def test_what_does_not_fit_is_refused_by_both_values():
    h = torch.randn(2, 12)
    with pytest.raises(AdapterError, match=r"road_2 of a layer 12 wide.*\[12\].*\[6\]"):
        rotate_trainable(h, torch.zeros(6), torch.ones(6), variant="road_2", group_size=2)
    with pytest.raises(AlgebraError, match="width 12 is not a multiple of group_size 8"):
        rotate_trainable(h, torch.zeros(6), torch.ones(6), variant="road_1", group_size=8)
    with pytest.raises(AlgebraError, match="unknown variant 'road_3'"):
        rotate_trainable(h, torch.zeros(6), torch.ones(6), variant="road_3", group_size=2)
