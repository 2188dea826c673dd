from __future__ import annotations

import pytest
import torch
from torch import nn

from roadkit.engine.bank import Bank
from roadkit.errors import AdapterError, AlgebraError
from tests.engine.bank.toys import close_to, rotated, small


def test_new_layers_and_group_sizes_are_added_under_running_rows(model):
    adapters = {
        "q": small(1),
        "v": small(2, layers=("v",), width=24, group_size=6),
        "both": small(3, layers=("q",), group_size=2).then(small(4, layers=("v",), width=24, group_size=12)),
    }
    bank, x = Bank(model, slots=3), torch.randn(3, 6)
    expected = {
        (name, layer): rotated(model, adapter, layer, x) for name, adapter in adapters.items() for layer in ("q", "v")
    }
    held = []
    for count, name in enumerate(adapters, 1):
        bank.add(name, adapters[name])
        held.append((name, bank.acquire(bank.parse(name))))
        for seen, row in held:  # every row that was there before still computes the same
            with bank.using(torch.full((3,), row.slot)):
                for layer in ("q", "v"):
                    close_to(model[layer](x), expected[seen, layer])
        assert len(bank.resident()) == count


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_group_sizes_that_do_not_fit_every_layer(model, order):
    """8, 24 and 36 outputs: no group size above 4 fits all three, yet each adapter is served."""
    adapters = [
        small(1, layers=("q",), width=8, group_size=8),
        small(2, layers=("v",), width=24, group_size=24),
        small(3, layers=("o",), width=36, group_size=12),
    ]
    bank, x = Bank(model, {str(i): adapters[i] for i in order}), torch.randn(4, 6)
    expected = {
        layer: torch.stack([rotated(model, adapter, layer, x)[i] for i, adapter in enumerate([*adapters, None])])
        for layer in ("q", "v", "o")
    }
    with bank.rows(["0", "1", "2", None]):
        for layer, wanted in expected.items():
            close_to(model[layer](x), wanted)


def test_layers_and_sizes_may_be_prepared_beforehand(model):
    bank = Bank(model, slots=2, target_layers=["q", "v"], group_sizes=[4, 2])
    buffer = bank.address
    bank.add("a", small(1))
    with bank.rows(["a"]):
        assert bank.address == buffer
    bank.add("b", small(1, layers=("o",), width=36))
    with bank.rows(["b"]):
        assert bank.address != buffer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "a bank needs at least one slot, got 0"),
        ({"target_layers": ["k"]}, "no layer 'k' that can be rotated in this model"),
        ({"target_layers": ["odd"]}, "odd: width 7 is odd"),
        ({"target_layers": ["q"], "group_sizes": [3]}, "group_size must be an even number of at least 2, got 3"),
    ],
)
def test_impossible_banks_are_refused(model, options, message):
    model["odd"] = nn.Linear(6, 7)
    with pytest.raises((AdapterError, AlgebraError), match=message):
        Bank(model, **options)
    assert not model["q"]._forward_hooks
