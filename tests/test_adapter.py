from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roadkit.adapter import Adapter, Base
from roadkit.errors import AdapterError, AlgebraError
from roadkit.layout import Layout
from roadkit.rotation import VARIANTS, raise_to_parameters, rotate
from tests.conftest import random_parameters

LAYERS = {"layers.0.q": 8, "layers.0.v": 12, "layers.1.q": 8}


def adapter(seed: int = 0, variant: str = "road_1", group_size: int = 4, layers=tuple(LAYERS), **options) -> Adapter:
    parameters = {
        name: random_parameters(variant, LAYERS.get(name, 8), group_size, seed + 31 * index)
        for index, name in enumerate(layers)
    }
    return Adapter.from_parameters(parameters, variant=variant, group_size=group_size, **options)


def head(value: float) -> dict:
    return {"score": {"weight": torch.full((2, 8), value), "bias": torch.zeros(2)}}


def apply(adapter: Adapter, h: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: rotate(x, *adapter.layer(name)) if name in adapter.layout.spans else x for name, x in h.items()}


def outputs() -> dict[str, torch.Tensor]:
    return {name: torch.randn(3, width) for name, width in (LAYERS | {"extra": 8}).items()}


def check(actual: dict, expected: dict) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-4)


# ---- a value ----------------------------------------------------------------------------------------------------


def test_layers_lie_end_to_end_ordered_by_group_size_and_name():
    layout = Layout({"z": (8, 2), "a": (8, 4), "b": (4, 2), "c": (12, 4)})
    assert list(layout.spans) == ["b", "z", "a", "c"]
    assert layout.parts == {2: slice(0, 12), 4: slice(12, 32)}
    assert layout.width == 32
    assert layout == Layout({"c": (12, 4), "b": (4, 2), "a": (8, 4), "z": (8, 2)})
    assert layout.locate(0, 2) == ("b", 0)
    assert layout.locate(2, 2) == ("z", 0)
    assert layout.locate(5, 4) == ("c", 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layer_is_lowered_by_itself(variant):
    from roadkit.rotation import lower

    parameters = {name: random_parameters(variant, width, 4, width) for name, width in LAYERS.items()}
    built = Adapter.from_parameters(parameters, variant=variant, group_size=4)
    for name, pair in parameters.items():
        a, b, group_size = built.layer(name)
        assert group_size == 4
        assert all(map(torch.equal, (a, b), lower(variant, *pair, 4)))


def test_it_cannot_be_changed():
    theta, alpha = random_parameters("road_1", 8, 4)
    parameters = {"q": (theta, alpha)}
    built = Adapter.from_parameters(parameters, variant="road_1", group_size=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        built.variant = "road_2"  # type: ignore[misc]
    kept = theta.clone()
    theta.zero_()  # as an optimizer does to the parameters an adapter was made from
    parameters.clear()
    assert torch.equal(built.parameters["q"][0], kept)


def test_equal_content_is_equal_whatever_it_came_from():
    identity = {
        variant: Adapter.from_parameters({"q": (torch.zeros(count), torch.ones(count))}, variant=variant, group_size=2)
        for variant, count in {"road_1": 2, "road_2": 4, "road_4": 8}.items()
    }
    assert len(set(identity.values())) == 1
    one = adapter(1)
    variant, theta, alpha = raise_to_parameters(one.a, one.b, 4)
    assert variant == "road_1"
    assert one == adapter(1)
    assert hash(one) == hash(adapter(1))
    assert one != adapter(2)
    assert one != adapter(1, group_size=2)
    assert one != adapter(1, layers=("layers.0.q", "layers.0.v"))
    assert one != "formal"


def test_hash_covers_heads_and_ignores_names_of_files():
    one, other = adapter(1, heads=head(1.0)), adapter(1, heads=head(2.0))
    assert one.content_hash == adapter(1, heads=head(1.0), base=Base("x", "y")).content_hash
    assert len({one.content_hash, other.content_hash, adapter(1).content_hash}) == 3
    turned = {"score": dict(reversed(head(1.0)["score"].items()))}
    assert adapter(1, heads=turned) == one
    assert adapter(1, heads={"score": {"weight": torch.ones(8, 2), "bias": torch.zeros(2)}}) != one


def test_hash_does_not_change():
    """Servers keep it in caches and registries, so it must not depend on the process."""
    one = Adapter.from_parameters({"q": (torch.zeros(2), torch.ones(2))}, variant="road_1", group_size=2)
    assert one.content_hash[:16] == "9444b90c90bab15b"


def test_repr_says_what_it_is():
    one = adapter(1)
    assert repr(one) == f"Adapter(road_1, 3 layers, group_size=4, {one.content_hash[:12]})"
    assert repr(one.then(one)).startswith("Adapter(computed, 3 layers, group_size=4, ")


@pytest.mark.parametrize(
    ("parameters", "options", "message"),
    [
        ({}, {}, "an adapter needs at least one layer"),
        ({"q": (4, 4)}, {"variant": "road_3"}, "unknown variant 'road_3'"),
        ({"q": (4, 3)}, {}, r"q: θ \[4\] and α \[3\] must be equal and 1-D"),
        ({"q": (4, 4), "v": (5, 5)}, {}, "v: width 10 is not a multiple of group_size 4"),
        ({"q": (5, 5)}, {"variant": "road_4"}, "q: 5 entries fit no road_4 layer"),
        ({"q": (4, 4)}, {"group_size": 3}, "group_size must be an even number"),
    ],
)
def test_parameters_that_fit_no_layer_are_refused(parameters, options, message):
    built = {name: (torch.zeros(theta), torch.ones(alpha)) for name, (theta, alpha) in parameters.items()}
    with pytest.raises((AdapterError, AlgebraError), match=message):
        Adapter.from_parameters(built, **{"variant": "road_1", "group_size": 4} | options)


# ---- the algebra ------------------------------------------------------------------------------------------------

variants = st.sampled_from(VARIANTS)


@settings(max_examples=15)
@given(variants, variants, st.integers(0, 1000))
def test_then_is_applying_in_turn(one, other, seed):
    first, second, h = adapter(seed, one), adapter(seed + 7, other), outputs()
    check(apply(first.then(second), h), apply(second, apply(first, h)))


def test_layers_that_one_lacks_stay_as_the_other_leaves_them():
    first = adapter(1, layers=("layers.0.q", "extra"))
    second = adapter(2, layers=("layers.0.q", "layers.1.q"))
    both, h = first.then(second), outputs()
    assert set(both.layout.layers) == {"layers.0.q", "layers.1.q", "extra"}
    check(apply(both, h), apply(second, apply(first, h)))


def test_layers_of_different_group_sizes_compose_if_they_do_not_meet():
    first, second, h = adapter(1, layers=("extra",), group_size=2), adapter(2, layers=("layers.0.q",)), outputs()
    both = first.then(second)
    assert both.group_sizes == (2, 4)
    check(apply(both, h), apply(second, apply(first, h)))
    check(apply(both.then(both.inverse()), h), h)
    check(apply(both**2, h), apply(both, apply(both, h)))


def test_composition_order_matters_for_road_2_and_not_for_road_1():
    for variant, same in (("road_1", True), ("road_2", False), ("road_4", False)):
        first, second = adapter(1, variant), adapter(2, variant)
        there, back = first.then(second), second.then(first)
        assert torch.allclose(there.b, back.b, atol=1e-5) == same


@settings(max_examples=15)
@given(variants, st.integers(0, 1000))
def test_inverse_undoes(variant, seed):
    one = adapter(seed, variant)
    try:
        nothing = one.then(one.inverse())
    except AlgebraError:
        return
    worst = max(map(float, (one.a.abs().max(), one.inverse().a.abs().max(), one.inverse().b.abs().max())))
    torch.testing.assert_close(nothing.a, torch.ones_like(nothing.a), rtol=0, atol=1e-5 * worst)
    torch.testing.assert_close(nothing.b, torch.zeros_like(nothing.b), rtol=0, atol=1e-5 * worst)


def test_half_and_half_is_the_whole():
    one = adapter(3)
    half = one**0.5
    torch.testing.assert_close(half.then(half).a, one.a, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(half.then(half).b, one.b, rtol=1e-5, atol=1e-6)
    assert one**1 is one


@pytest.mark.parametrize("group_size", [2, 4])
def test_refusals_name_layer_pair_and_condition_number(group_size):
    theta, alpha = torch.zeros(8), torch.ones(8)
    alpha[5] = 0  # a second half's scale is gone: its pair is singular
    flat = Adapter.from_parameters(
        {"first": (torch.zeros(12), torch.ones(12)), "second": (theta, alpha)}, variant="road_2", group_size=group_size
    )
    pair = {2: 2, 4: 3}[group_size]
    if group_size == 4:
        alpha[5], alpha[7] = 1, 0
        flat = Adapter.from_parameters(
            {"first": (torch.zeros(12), torch.ones(12)), "second": (theta, alpha)}, variant="road_2", group_size=4
        )
    message = rf"power -1: layer second, pair {pair}: its block cannot be inverted: condition number inf exceeds 1e\+06"
    with pytest.raises(AlgebraError, match=message) as caught:
        flat.inverse()
    assert caught.value.pair == pair
    with pytest.raises(AlgebraError, match=f"power 0.5: layer second, pair {pair}: its block has no real power 0.5"):
        flat**0.5
    assert (flat**2).a.isfinite().all()


# ---- what does not compose --------------------------------------------------------------------------------------


def test_other_group_sizes_and_widths_are_refused_together():
    first = adapter(1, layers=("layers.0.q", "layers.0.v"))
    wide = {"layers.0.q": random_parameters("road_1", 16, 4), "layers.0.v": random_parameters("road_1", 12, 4)}
    second = Adapter.from_parameters(wide, variant="road_1", group_size=4)
    third = Adapter.from_parameters(
        {"layers.0.q": random_parameters("road_1", 16, 2), "layers.0.v": random_parameters("road_1", 12, 2)},
        variant="road_1",
        group_size=2,
    )
    with pytest.raises(AdapterError, match="layers.0.q: 8 wide in one adapter, 16 in the other$"):
        first.then(second)
    with pytest.raises(AdapterError) as caught:
        first.then(third)
    assert "layers.0.q: 8 wide in one adapter, 16 in the other" in str(caught.value)
    assert "layers.0.v: group_size 4 in one adapter, 2 in the other" in str(caught.value)


def test_many_mismatches_are_counted():
    layers = tuple(f"l{i}" for i in range(12))
    with pytest.raises(AdapterError, match=r"l2: group_size 4 in one adapter, 2 in the other \(and 7 more\)$"):
        adapter(1, layers=layers).then(adapter(2, group_size=2, layers=layers))


def test_other_base_models_are_refused():
    one, other = adapter(1, base=Base("llama", "aa")), adapter(2, base=Base("qwen", "bb"))
    with pytest.raises(AdapterError, match="belong to different base models: 'llama' and 'qwen'"):
        one.then(other)
    assert one.then(adapter(2)).base == one.base
    assert adapter(2).then(one).base == one.base
    assert one.then(adapter(2, base=Base("a copy of llama", "aa"))).base == one.base


def test_different_heads_are_refused():
    one = adapter(1, heads=head(1.0))
    assert one.then(adapter(2)).heads == adapter(2).then(one).heads == one.heads
    assert one.then(adapter(2, heads=head(1.0))).heads.keys() == one.heads.keys()
    assert (one**0.5).heads == one.heads
    for other in (head(2.0), {"classifier": head(1.0)["score"]}, {"score": {"weight": torch.ones(2, 8)}}):
        with pytest.raises(AdapterError, match="adapters with different heads do not compose"):
            one.then(adapter(2, heads=other))
