"""Every law of the group of adapters, on random adapters and on a model."""

from __future__ import annotations

import math

import pytest
import torch

from roadkit import algebra, matrices, models, modules, rotation
from roadkit.adapter import Adapter
from roadkit.errors import AdapterError, AlgebraError
from tests.conftest import random_parameters

VARIANTS = ("road_1", "road_2", "road_4")
WIDTHS = {"m.0.q": 32, "m.0.up": 64, "m.1.q": 32, "m.1.up": 64}


def make(seed: int, variant: str = "road_1", *, group_size: int = 16, strength: float = 0.3, layers=WIDTHS) -> Adapter:
    """Angles small enough that every block has a real logarithm, unless `strength` is raised."""
    parameters = {}
    for index, (name, width) in enumerate(layers.items()):
        theta, alpha = random_parameters(variant, width, group_size, seed=100 * seed + index)
        parameters[name] = strength * theta, 1 + strength * (alpha - 1)
    return Adapter.from_parameters(parameters, variant=variant, group_size=group_size)


def same(one: Adapter, other: Adapter, tolerance: float = 1e-5) -> None:
    assert one.layout == other.layout
    torch.testing.assert_close(one.a, other.a, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(one.b, other.b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("variant", VARIANTS)
def test_group_laws(variant):
    a, b, c = (make(seed, variant) for seed in (1, 2, 3))
    identity = a.then(a.inverse())
    torch.testing.assert_close(identity.a, torch.ones_like(identity.a))
    torch.testing.assert_close(identity.b, torch.zeros_like(identity.b), rtol=0, atol=1e-6)
    same(a.inverse().then(a), identity)
    same(a.then(identity), a)
    same(a.then(b).then(c), a.then(b.then(c)))
    same(a.then(b).inverse(), b.inverse().then(a.inverse()))
    same((a**0.25).then(a**0.75), a)


def test_scaled_rotations_commute_and_general_blocks_do_not():
    a, b = make(1), make(2)
    same(a.then(b), b.then(a))
    a, b = make(1, "road_2"), make(2, "road_2")
    assert float((a.then(b).a - b.then(a).a).abs().max()) > 1e-2


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_composed_is_applied_in_turn_on_a_model(variant, tiny_llama, random_adapter):
    model, ids = tiny_llama(), torch.randint(3, 250, (2, 9))
    a, b = (random_adapter(model, seed, variant=variant) for seed in (1, 2))
    with modules.attached(model, a), modules.attached(model, b):
        in_turn = model(ids).logits
    with modules.attached(model, a.then(b)):
        torch.testing.assert_close(model(ids).logits, in_turn, rtol=1e-4, atol=1e-5)
    with modules.attached(model, a), modules.attached(model, algebra.difference(b, a)):
        removed = model(ids).logits
    with modules.attached(model, b):
        torch.testing.assert_close(model(ids).logits, removed, rtol=0, atol=2e-3)


@pytest.mark.model
@torch.no_grad()
def test_composed_is_applied_in_turn_on_smollm2(random_adapter):
    model, tokenizer = models.load_causal("smollm2"), models.load_tokenizer("smollm2")
    ids = tokenizer("The lighthouse keeper counts the ships that pass.", return_tensors="pt")["input_ids"]
    a, b = (random_adapter(model, seed, layers=("q_proj", "down_proj"), group_size=64) ** 0.05 for seed in (1, 2))
    plain = model(ids).logits
    with modules.attached(model, a), modules.attached(model, b):
        in_turn = model(ids).logits
    with modules.attached(model, a.then(b)):
        composed = model(ids).logits
    assert float((in_turn - plain).abs().max()) > 0.5
    torch.testing.assert_close(composed, in_turn, rtol=0, atol=2e-4 * float(plain.abs().max()))
    with modules.attached(model, a), modules.attached(model, a.inverse()):
        torch.testing.assert_close(model(ids).logits, plain, rtol=0, atol=2e-4 * float(plain.abs().max()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_difference_is_what_is_missing(variant):
    a, b = make(1, variant), make(2, variant)
    same(a.then(algebra.difference(b, a)), b)
    only_q = algebra.only(a, ["m.0.q"])
    same(only_q.then(algebra.difference(b, only_q)), b)


@pytest.mark.parametrize("variant", VARIANTS)
def test_interpolation_goes_from_one_to_the_other(variant):
    a, b = make(1, variant), make(2, variant)
    same(algebra.interpolate(a, b, 0), a)
    same(algebra.interpolate(a, b, 1), b)
    same(algebra.interpolate(a, b, 0.3), algebra.interpolate(b, a, 0.7))


def test_interpolation_takes_the_shortest_arc_at_constant_speed():
    one = {"m.0.q": (torch.full((16,), 3.0), torch.full((16,), 1.0))}
    other = {"m.0.q": (torch.full((16,), -3.0), torch.full((16,), 4.0))}
    a, b = (Adapter.from_parameters(x, variant="road_1", group_size=16) for x in (one, other))
    middle = algebra.interpolate(a, b, 0.5)
    angle, scale = rotation.turn(*middle.layer("m.0.q"))
    torch.testing.assert_close(angle.abs(), torch.full((16,), math.pi), rtol=0, atol=1e-3)
    torch.testing.assert_close(scale.exp(), torch.full((16,), 2.0))
    steps = algebra.distances([algebra.interpolate(a, b, share) for share in (0, 0.25, 0.5, 0.75, 1)])
    torch.testing.assert_close(steps.diagonal(1), steps[0, 1].expand(4), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logarithm_and_exponential_undo_each_other(variant):
    adapter = make(4, variant)
    for group_size, part in adapter.layout.parts.items():
        logs = matrices.logarithm(adapter.a[part], adapter.b[part], group_size)
        a, b = matrices.exponential(*logs, group_size)
        torch.testing.assert_close(a.float(), adapter.a[part])
        torch.testing.assert_close(b.float(), adapter.b[part])
        half = matrices.exponential(logs[0] / 2, logs[1] / 2, group_size)
        powered = matrices.power(adapter.a[part], adapter.b[part], 0.5, group_size)
        torch.testing.assert_close(half[0].float(), powered[0])


def test_logarithm_agrees_with_the_matrix_exponential():
    a, b = make(5, "road_2").layer("m.0.up")[:2]
    log_a, log_b = matrices.logarithm(a, b, 16)
    for i in (0, 5, 40):
        block = i // 16 * 16 + i % 8
        lo, hi = block, block + 8
        matrix = torch.tensor([[log_a[lo], log_b[lo]], [log_b[hi], log_a[hi]]])
        torch.testing.assert_close(
            torch.linalg.matrix_exp(matrix).float(), torch.tensor([[a[lo], b[lo]], [b[hi], a[hi]]])
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_geometric_mean(variant):
    a, b, c = (make(seed, variant) for seed in (1, 2, 3))
    same(algebra.mean([a, a, a]), a)
    same(algebra.mean([a, b, c]), algebra.mean([c, a, b]))
    same(algebra.mean([a, b], [1, 0]), a)
    if variant == "road_1":
        same(algebra.mean([a, b], [3, 1]), (a**0.75).then(b**0.25))
        same(algebra.mean([a, b]), algebra.interpolate(a, b, 0.5))
    with pytest.raises(AlgebraError, match="as many weights"):
        algebra.mean([a, b], [1])


def test_what_has_no_logarithm_is_named():
    theta, alpha = torch.zeros(32), torch.ones(32)
    alpha[3] = -1  # road_2 with one negative eigenvalue in pair 3
    bad = Adapter.from_parameters({"m.0.q": (theta, alpha)}, variant="road_2", group_size=16)
    for call in (lambda: algebra.mean([bad, bad]), lambda: algebra.distances([bad, bad])):
        with pytest.raises(AlgebraError, match=r"layer m.0.q, pair 3: .* no real logarithm"):
            call()


@pytest.mark.parametrize("variant", VARIANTS)
def test_distances_are_a_metric(variant):
    adapters = [make(seed, variant) for seed in range(6)]
    matrix = algebra.distances(adapters)
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix.diagonal(), torch.zeros(6, dtype=torch.float64))
    assert (matrix + torch.eye(6) > 0.05).all()
    for middle in range(6):
        assert (matrix <= matrix[:, middle : middle + 1] + matrix[middle : middle + 1] + 1e-9).all()


def test_distance_is_the_angle_between_them_wrapped():
    angles = [0.1, 0.4, 3.0, -3.0]
    adapters = [
        Adapter.from_parameters({"m.0.q": (torch.full((16,), angle), torch.ones(16))}, variant="road_1", group_size=16)
        for angle in angles
    ]
    matrix = algebra.distances(adapters)
    for i, one in enumerate(angles):
        for j, other in enumerate(angles):
            gap = abs(one - other)
            assert float(matrix[i, j]) == pytest.approx(min(gap, 2 * math.pi - gap), abs=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_distances_do_not_depend_on_the_chunks(variant, monkeypatch):
    adapters = [make(seed, variant, strength=0.6 if variant == "road_1" else 0.3) for seed in range(3)]
    whole = algebra.distances(adapters)
    monkeypatch.setattr(algebra, "MAX_CHUNK", 1)
    torch.testing.assert_close(algebra.distances(adapters), whole)


def test_distance_counts_missing_layers_as_the_identity():
    whole, part = make(1), algebra.only(make(1), ["m.0.q", "m.1.q"])
    identity = whole**0
    up = algebra.only(whole, ["m.0.up", "m.1.up"])
    torch.testing.assert_close(algebra.distances([whole, part])[0, 1], algebra.distances([identity, up])[0, 1])


def test_clusters_join_the_nearest_first():
    matrix = torch.tensor([[0.0, 1, 9, 9], [1, 0, 9, 11], [9, 9, 0, 2], [9, 11, 2, 0]])
    assert algebra.cluster(matrix) == [(0, 1, 1.0), (2, 3, 2.0), (4, 5, 9.5)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("by", ["layer", "module", "pairs"])
def test_parts_make_up_the_whole(variant, by):
    adapter = make(1, variant)
    parts = algebra.split(adapter, by, 3)
    assert set(parts) == {"layer": {"0", "1"}, "module": {"q", "up"}, "pairs": {"0", "1", "2"}}[by]
    assert algebra.union(parts.values()) == adapter
    assert algebra.union(reversed(parts.values())) == adapter


def test_a_union_needs_disjoint_parts():
    parts = algebra.split(make(1), "pairs", 2)
    with pytest.raises(AlgebraError, match="two parts rotate output 0 of m.0.q"):
        algebra.union([parts["0"], parts["1"], algebra.within(make(2), 0, 0.1)])


def test_conflicts_count_pairs_turned_against_each_other():
    theta = torch.tensor([0.5, 0.5, 0.5, 0.001] * 4)
    other = torch.tensor([-0.2, 0.2, 0.001, -0.9] * 4)
    a, b = (
        Adapter.from_parameters({"m.0.q": (x, torch.ones(16))}, variant="road_1", group_size=2) for x in (theta, other)
    )
    (row,) = algebra.conflicts(a, b)
    assert (row["both"], row["opposed"], row["share"]) == (8, 4, 0.25)
    assert row["cancelled"] == pytest.approx(0.2)
    assert all(row["opposed"] == row["both"] for row in algebra.conflicts(make(1), make(1).inverse()))


def test_adapters_that_do_not_fit_each_other_are_refused():
    a, other = make(1), make(1, group_size=8)
    for call in (
        algebra.difference,
        lambda x, y: algebra.mean([x, y]),
        lambda x, y: algebra.distances([x, y]),
        algebra.conflicts,
    ):
        with pytest.raises(AdapterError, match="these adapters do not compose: m.0.q: group_size"):
            call(a, other)
    with pytest.raises(AlgebraError, match="split by 'colour'"):
        algebra.split(a, "colour")
    with pytest.raises(AlgebraError, match="no layer 'm.9'"):
        algebra.only(a, ["m.9"])
