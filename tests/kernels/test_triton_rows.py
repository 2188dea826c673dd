"""The Triton kernel against a loop: in Triton's interpreter on the CPU, and compiled for GPUs that are not here."""

import functools
import importlib.util
import re

import pytest
import torch

pytest.importorskip("triton")  # Linux only
from roadkit.kernels import triton_rows

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCES = {  # relative, absolute
    torch.float32: (1e-5, 1e-6),
    torch.float16: (5e-3, 5e-3),
    torch.bfloat16: (3e-2, 2e-2),
}
SLOTS = 9


@functools.cache
def _interpreted():
    """A second copy of the module, whose kernel runs on the CPU; the first stays compiled for everybody else."""
    spec = importlib.util.spec_from_file_location("interpreted_triton_rows", triton_rows.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    torch.manual_seed(0)
    return _interpreted()


def bank(d, sizes, slots=SLOTS):
    return torch.randn(slots, d), torch.randn(len(sizes), slots, d)


def rows_by(popularity, n, slots=SLOTS):
    weights = {
        "identical": [1.0] + [0.0] * (slots - 1),
        "uniform": [1.0] * slots,
        "zipf": [1 / (slot + 1) for slot in range(slots)],
        "skewed": [0.9] + [0.1 / (slots - 1)] * (slots - 1),
    }
    if popularity == "distinct":
        return torch.randperm(n)
    return torch.multinomial(torch.tensor(weights[popularity]), max(n, 1), replacement=True)[:n]


def loop(h, rows, a, b, sizes):
    """The definition: every row alone, every partner looked up by its index."""
    z = torch.empty_like(h)
    partners = [torch.tensor([j // g * g + (j % g + g // 2) % g for j in range(h.shape[1])]) for g in sizes]
    for i, slot in enumerate(rows.tolist()):
        total = a[slot] * h[i].float()
        for k, partner in enumerate(partners):
            total += b[k, slot] * h[i, partner].float()
        z[i] = total.to(h.dtype)
    return z


def assert_close(actual, expected):
    rtol, atol = TOLERANCES[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("popularity", ["identical", "distinct", "uniform", "zipf", "skewed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_matches_the_loop(interpreted, dtype, popularity):
    a, b = bank(192, (64,), slots=31)
    h, rows = torch.randn(31, 192).to(dtype), rows_by(popularity, 31, slots=31)
    assert_close(interpreted.rotate_rows_triton(h, rows, a, b, (64,)), loop(h, rows, a, b, (64,)))


@pytest.mark.parametrize(
    ("n", "d", "g"),
    [(n, d, g) for n in (0, 1, 7) for d in (2, 6, 192, 576) for g in sorted({2, 6, 64, d}) if d % g == 0]
    + [(133, 6, 2), (133, 192, 64), (133, 576, 576)],
)
def test_odd_sizes_match_the_loop(interpreted, n, d, g):
    a, b = bank(d, (g,))
    h, rows = torch.randn(n, d), rows_by("uniform", n).int()
    z = interpreted.rotate_rows_triton(h, rows, a, b, (g,))
    assert z.shape == (n, d) and z.dtype == h.dtype
    assert_close(z, loop(h, rows, a, b, (g,)))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    ("d", "sizes"),
    [
        (6, (2, 6)),
        (576, (2, 64)),
        (576, (64, 576, 6)),
        (2304, (6, 4)),  # three programs a row, none of a power of two
        (2304, (256, 2304)),  # one program a row
        (8448, (256, 66, 8448)),  # too wide for one program: in place reads from a copy
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_several_group_sizes_and_in_place_match_the_loop(interpreted, dtype, d, sizes, in_place):
    a, b = bank(d, sizes)
    h, rows = torch.randn(3, d).to(dtype), rows_by("uniform", 3)
    expected = loop(h, rows, a, b, sizes)
    z = interpreted.rotate_rows_triton(h, rows, a, b, sizes, h if in_place else None)
    assert (z is h) == in_place
    assert_close(z, expected)


VIEWS = {
    "slice": lambda x: x[:14:2, 8:200],
    "transposed": lambda x: x[:192, :7].t(),
    "every second": lambda x: x[:7, 1:384:2],
}


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("kind", VIEWS)
def test_strides_are_followed(interpreted, kind, in_place):
    view, whole = VIEWS[kind], torch.randn(192, 400)
    h, rest = view(whole), whole.clone()
    (a, b), rows = bank(192, (6, 64)), rows_by("uniform", h.shape[0])
    expected = loop(h, rows, a, b, (6, 64))
    z = interpreted.rotate_rows_triton(h, rows, a, b, (6, 64), h if in_place else None)
    assert_close(z, expected)
    view(rest).copy_(h)  # nothing but the view was written
    assert torch.equal(whole, rest)


def test_slices_of_a_wider_bank_are_read_by_their_strides(interpreted):
    buffer = torch.randn(SLOTS, 3, 500)
    a, b = buffer[:, 0, 4:196], buffer[:, 1:, 4:196].transpose(0, 1)
    h, rows = torch.randn(7, 192), rows_by("uniform", 14)[::2]
    assert_close(interpreted.rotate_rows_triton(h, rows, a, b, (2, 64)), loop(h, rows, a, b, (2, 64)))


def test_out_may_overlap_h(interpreted):
    (a, b), rows, buffer = bank(192, (64,)), rows_by("uniform", 7), torch.randn(8, 192)
    expected = loop(buffer[:7], rows, a, b, (64,))
    interpreted.rotate_rows_triton(buffer[:7], rows, a, b, (64,), buffer[1:])
    assert_close(buffer[1:], expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_its_batch(interpreted, dtype):
    (a, b), rows, h = bank(576, (2, 64)), rows_by("zipf", 7), torch.randn(7, 576).to(dtype)
    a[0], b[:, 0] = 1, 0
    rows[3] = 0
    mixed = interpreted.rotate_rows_triton(h, rows, a, b, (2, 64))
    for i in range(7):
        assert torch.equal(
            mixed[i : i + 1], interpreted.rotate_rows_triton(h[i : i + 1], rows[i : i + 1], a, b, (2, 64))
        )
    assert torch.equal(mixed[3], h[3])  # the identity slot is exact
    assert torch.equal(mixed, interpreted.rotate_rows_triton(h, rows, a, b, (2, 64), h))


def test_a_row_without_a_slot_is_nan_and_its_neighbours_are_right(interpreted):
    (a, b), h = bank(192, (64,)), torch.randn(4, 192)
    z = interpreted.rotate_rows_triton(h, torch.tensor([1, -1, SLOTS, 2]), a, b, (64,))
    assert z[1:3].isnan().all()
    assert_close(z[[0, 3]], loop(h[[0, 3]], torch.tensor([1, 2]), a, b, (64,)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capability", [80, 90])
def test_kernel_compiles_for_gpus_that_are_not_here(capability, dtype):
    compiled = triton_rows.compile_ahead(capability, dtype, (64,))
    assert re.search(rf"^\.target sm_{capability}a?$", compiled.asm["ptx"], re.MULTILINE)
    assert compiled.asm["cubin"].startswith(b"\x7fELF")
    moved = set(re.findall(r"(?:ld|st)\.global\.\S+", compiled.asm["ptx"]))
    assert moved == {"ld.global.b64", "ld.global.v4.b32", "st.global.v4.b32"}  # the slot; the rest in 16-byte pieces


@pytest.mark.parametrize("sizes", [(64,), (6, 2), (2, 64), (8192,)])
def test_threads_wait_for_each_other_before_they_store_in_place(sizes):
    # no interpreter shows this race: it runs a program's threads in step
    ptx = triton_rows.compile_ahead(80, torch.float16, sizes, in_place=True).asm["ptx"]
    order = " ".join(re.findall(r"ld\.global|bar\.sync|st\.global", ptx))
    assert re.fullmatch(r"(ld\.global )+bar\.sync( st\.global)+", order), order
