from __future__ import annotations

import itertools
import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roadkit.errors import AdapterError, AlgebraError
from roadkit.kernels import native
from roadkit.kernels.rows import backend_for, rotate_rows, rotate_rows_loop
from tests.conftest import TOLERANCE

SHAPES = [(2, 2), (6, 2), (6, 6), (192, 2), (192, 6), (192, 64), (192, 192), (576, 2), (576, 6), (576, 64), (576, 576)]
SHAPES += [
    (1000, 2),
    (1000, 8),
    (1000, 40),
    (1000, 1000),
    (4800, 64),
    (4800, 2),
]  # d, g; the last cross a chunk of 2048
COUNTS = (0, 1, 7, 133)
POPULARITY = ("identical", "distinct", "uniform", "zipf", "skewed")
SLOTS = 140
BACKEND = "roadkit.kernels.rows.backend_for"


@pytest.fixture(params=["native", "torch"])
def backend(request, monkeypatch):
    """Every test that asks for it runs on both of the CPU's back ends."""
    if request.param == "native" and native.load() is None:
        pytest.skip("no C compiler here")
    monkeypatch.setattr(BACKEND, lambda device_type: request.param)
    return request.param


def popular_rows(popularity: str, count: int) -> Tensor:
    """Which adapter each row asks for, as punica's tests distribute them."""
    if popularity == "identical":
        return torch.full((count,), 3)
    if popularity == "distinct":
        return torch.randperm(SLOTS)[:count]
    if popularity == "uniform":
        return torch.randint(math.ceil(count**0.5) + 1, (count,))
    weights = torch.arange(1, SLOTS + 1) ** -1.5 if popularity == "zipf" else 0.3 ** torch.arange(SLOTS)
    return torch.multinomial(weights, count, replacement=True) if count else torch.zeros(0, dtype=torch.int64)


def vectors(sizes: int, width: int) -> tuple[Tensor, Tensor]:
    return torch.randn(SLOTS, width), torch.randn(sizes, SLOTS, width)


def check(actual: Tensor, expected: Tensor, sizes: int = 1) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance["rtol"], atol=sizes * tolerance["atol"])


# ---- every back end is the loop ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_equals_the_loop(backend, dtype):
    popularity = itertools.cycle(POPULARITY)
    for (width, group_size), count in itertools.product(SHAPES, COUNTS):
        (a, b), rows = vectors(1, width), popular_rows(next(popularity), count)
        h = torch.randn(count, width).to(dtype)
        actual = rotate_rows(h, rows, a, b[0], group_size)
        check(actual, rotate_rows_loop(h, rows, a, b, (group_size,)))


@pytest.mark.parametrize("popularity", POPULARITY)
@pytest.mark.parametrize("sizes", [(2,), (64, 2), (2, 6, 64, 192), (192, 2)])
def test_equals_the_loop_for_several_group_sizes(backend, sizes, popularity):
    for dtype, count in itertools.product((torch.float32, torch.bfloat16), COUNTS):
        (a, b), rows = vectors(len(sizes), 576), popular_rows(popularity, count)
        h = torch.randn(count, 576).to(dtype)
        check(rotate_rows(h, rows, a, b, sizes), rotate_rows_loop(h, rows, a, b, sizes), len(sizes))


def views(h: Tensor, layout: str) -> Tensor:
    """The same values behind other strides."""
    if layout == "transposed":
        return h.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "every second column":
        return h.repeat_interleave(2, dim=-1)[..., ::2]
    if layout == "padded":
        return torch.nn.functional.pad(h, (3, 5))[..., 3:-5]
    if layout == "every second row":
        return h.repeat_interleave(2, dim=0)[::2]
    return h


@settings(max_examples=60)
@given(
    batch=st.integers(0, 5),
    tokens=st.integers(0, 9),
    shape=st.sampled_from(SHAPES[:-2]),
    layout=st.sampled_from(["", "transposed", "every second column", "padded", "every second row"]),
    prefix=st.booleans(),
    index=st.sampled_from([torch.int64, torch.int32, torch.int16, torch.uint8]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    chosen=st.sampled_from(["native", "torch"]),
)
def test_any_layout_equals_the_loop(batch, tokens, shape, layout, prefix, index, dtype, chosen):
    if chosen == "native" and native.load() is None:
        return
    width, group_size = shape
    a, b = vectors(1, width)
    plain = torch.randn(batch, tokens, width).to(dtype)
    h, before = views(plain, layout), plain.clone()
    rows = torch.randint(SLOTS, (batch,) if prefix else (batch, tokens)).to(index)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BACKEND, lambda device_type: chosen)
        actual = rotate_rows(h, rows, a, b, (group_size,))
    check(actual, rotate_rows_loop(plain, rows, a, b, (group_size,)))
    assert torch.equal(h, before)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("known", range(4))
def test_rows_may_stop_early(backend, shape, known):
    (a, b), h = vectors(1, 6), torch.randn(*shape, 6)
    rows = torch.randint(SLOTS, shape[:known])
    check(rotate_rows(h, rows, a, b, (2,)), rotate_rows_loop(h, rows, a, b, (2,)))


def test_rows_may_be_strided(backend):
    (a, b), h, rows = vectors(1, 6), torch.randn(4, 3, 6), torch.randint(SLOTS, (3, 4)).t()
    assert not rows.is_contiguous()
    check(rotate_rows(h, rows, a, b, (2,)), rotate_rows_loop(h, rows, a, b, (2,)))


def test_vectors_may_be_columns_of_a_wider_buffer(backend):
    buffer = torch.randn(SLOTS, 3, 1000)  # as the bank keeps them: slots, planes, all layers end to end
    a, b = buffer[:, 0, 100:292], buffer[:, 1:, 100:292].transpose(0, 1)
    h, rows = torch.randn(7, 192), torch.randint(SLOTS, (7,))
    check(rotate_rows(h, rows, a, b, (64, 2)), rotate_rows_loop(h, rows, a, b, (64, 2)), 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("sizes", [(64,), (2,), (6, 64)])
def test_in_place(backend, dtype, sizes):
    (a, b), h, rows = vectors(len(sizes), 576), torch.randn(9, 576).to(dtype), torch.randint(SLOTS, (9,))
    expected = rotate_rows(h, rows, a, b, sizes)
    assert rotate_rows(h, rows, a, b, sizes, out=h) is h
    assert torch.equal(h, expected)


def test_out_is_written(backend):
    (a, b), h, rows = vectors(1, 192), torch.randn(9, 192), torch.randint(SLOTS, (9,))
    out = torch.full_like(h, torch.nan)
    assert rotate_rows(h, rows, a, b[0], 64, out=out) is out
    assert torch.equal(out, rotate_rows(h, rows, a, b[0], 64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("width", "sizes"), [(576, (64,)), (1000, (2,)), (192, (6, 64)), (6, (6,))])
def test_mixed_batch_is_exactly_its_rows_alone(backend, dtype, width, sizes):
    (a, b), rows = vectors(len(sizes), width), popular_rows("zipf", 133)
    h = torch.randn(133, width).to(dtype)
    together = rotate_rows(h, rows, a, b, sizes)
    alone = [rotate_rows(h[i : i + 1], rows[i : i + 1], a, b, sizes) for i in range(133)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_identity_slot_is_exact(backend, dtype):
    a, b = torch.ones(1, 192), torch.zeros(2, 1, 192)
    h = torch.randn(7, 192).to(dtype)
    assert torch.equal(rotate_rows(h, torch.zeros(7, dtype=torch.int64), a, b, (2, 64)), h)


def test_not_a_number_stays_in_its_row(backend):
    (a, b), h, rows = vectors(1, 192), torch.randn(7, 192), torch.arange(7)
    expected = rotate_rows(h, rows, a, b, (64,))
    a[3] = torch.nan
    actual = rotate_rows(h, rows, a, b, (64,))
    assert actual[3].isnan().all()
    others = torch.arange(7) != 3
    assert torch.equal(actual[others], expected[others])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_infinities_and_rounding_are_torchs(backend, dtype):
    """Without the second term there is one product and one rounding, so both sides must agree to the last bit."""
    h = torch.randn(40, 1000).to(dtype)
    h[0, :6] = torch.tensor([torch.inf, -torch.inf, torch.nan, 60000.0, 1e-7, -0.0])
    a, b, rows = torch.randn(1, 1000), torch.zeros(1, 1000), torch.zeros(40, dtype=torch.int64)
    a[0, 3] = 2.0
    h[0, 500:506] = 0  # the partners of the special values: 0 times infinity is not a number
    expected = (a * h.float() + 0 * h.float().roll(500, dims=-1)).to(dtype)
    torch.testing.assert_close(rotate_rows(h, rows, a, b, 1000), expected, rtol=0, atol=0, equal_nan=True)


def test_gradient_reaches_h(backend):
    (a, b), h, rows = vectors(1, 6), torch.randn(3, 6, dtype=torch.float64, requires_grad=True), torch.arange(3)
    a, b = a.double(), b.double()
    assert torch.autograd.gradcheck(lambda x: rotate_rows(x, rows, a, b, (6,)), (h,))


def test_no_gradient_is_recorded_where_none_is_wanted(backend):
    (a, b), h = vectors(1, 6), torch.randn(3, 6, requires_grad=True)
    with torch.no_grad():
        assert not rotate_rows(h, torch.arange(3), a, b, (6,)).requires_grad


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bad", [-1, SLOTS, 10**12, -(10**12)])
def test_rows_that_name_no_slot_are_refused(backend, dtype, bad):
    (a, b), h, rows = vectors(1, 6), torch.randn(4, 6).to(dtype), torch.tensor([0, 5, bad, 1])
    before = h.clone()
    for candidate in (h, h.clone().requires_grad_()):
        with pytest.raises(AdapterError, match=rf"row names slot {bad}, but there are 140 slots \(0 to 139\)"):
            rotate_rows(candidate, rows, a, b, (2,))
    with pytest.raises(AdapterError, match="row names slot"):
        rotate_rows(h, rows, a, b, (2,), out=h)
    assert torch.equal(h, before)


@pytest.mark.parametrize(
    ("h", "rows", "a", "b", "sizes", "message"),
    [
        ((4, 6), (3,), (2, 6), (2, 6), 2, r"rows \[3\] must be the leading shape of h \[4, 6\]"),
        ((4, 6), (4, 6), (2, 6), (2, 6), 2, r"rows \[4, 6\] must be the leading shape of h \[4, 6\]"),
        ((4, 3, 6), (3,), (2, 6), (2, 6), 2, r"rows \[3\] must be the leading shape of h \[4, 3, 6\]"),
        ((4, 6), (4,), (2, 8), (2, 8), 2, r"h is 6 wide .* got \[2, 8\] and \[2, 8\]"),
        ((4, 6), (4,), (2, 6), (3, 6), 2, r"got \[2, 6\] and \[3, 6\]"),
        ((4, 6), (4,), (6,), (6,), 2, r"got \[6\] and \[6\]"),
        ((4, 6), (4,), (2, 6), (2, 6), (2, 6), r"b \[2, slots, 6\]"),
        ((4, 6), (4,), (2, 6), (3, 2, 6), (2, 6), r"b \[2, slots, 6\]"),
        ((4, 7), (4,), (2, 7), (2, 7), 2, "width 7 is odd"),
        ((4, 6), (4,), (2, 6), (2, 6), 4, "width 6 is not a multiple of group_size 4"),
        ((4, 6), (4,), (2, 6), (2, 6), 3, "group_size must be an even number"),
        ((4, 6), (4,), (2, 6), (2, 6), 0, "group_size must be an even number"),
        ((4, 6), (4,), (2, 6), (2, 2, 6), (2, 4), "not a multiple of group_size 4"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(backend, h, rows, a, b, sizes, message):
    with pytest.raises((AdapterError, AlgebraError), match=message):
        rotate_rows(torch.zeros(h), torch.zeros(rows, dtype=torch.int64), torch.zeros(a), torch.zeros(b), sizes)


@pytest.mark.parametrize(
    "out",
    [torch.zeros(6, 4).t(), torch.zeros(4, 12)[:, ::2], torch.zeros(3, 6), torch.zeros(4, 6, dtype=torch.bfloat16)],
)
def test_an_unsuitable_out_is_refused(backend, out):
    (a, b), h = vectors(1, 6), torch.randn(4, 6)
    with pytest.raises(AdapterError, match=r"out must be contiguous, torch.float32 and \[4, 6\]"):
        rotate_rows(h, torch.arange(4), a, b, (2,), out=out)


@pytest.mark.parametrize("rows", [torch.zeros(4), torch.zeros(4, dtype=torch.bool)])
def test_rows_that_are_no_integers_are_refused(backend, rows):
    (a, b), h = vectors(1, 6), torch.randn(4, 6)
    with pytest.raises(AdapterError, match="rows must be integers, got torch"):
        rotate_rows(h, rows, a, b, (2,))


def test_vectors_of_other_dtypes_are_refused_by_the_fused_kernel(backend):
    (a, b), h = vectors(1, 6), torch.randn(4, 6)
    if backend == "native":
        with pytest.raises(AdapterError, match=r"must be float32 .* got torch.bfloat16"):
            rotate_rows(h, torch.arange(4), a.bfloat16(), b.bfloat16(), (2,))


# ---- the choice -------------------------------------------------------------------------------------------------


def test_backend_is_chosen_once_and_named_in_the_log(caplog, monkeypatch):
    backend_for.cache_clear()
    calls = []
    monkeypatch.setattr(native, "load", lambda: calls.append(1))
    with caplog.at_level(logging.INFO, "roadkit.kernels"):
        assert [backend_for("cpu") for _ in range(3)] == ["torch"] * 3
    assert caplog.messages == ["rotate_rows on cpu: torch"]
    assert len(calls) == 1
    backend_for.cache_clear()


def test_compiled_graphs_trace_the_torch_path(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr("roadkit.kernels.rows._rotate_native", None)
    (a, b), h, rows = vectors(1, 6), torch.randn(4, 6), torch.arange(4)
    check(rotate_rows(h, rows, a, b, (2,)), rotate_rows_loop(h, rows, a, b, (2,)))
