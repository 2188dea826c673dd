from __future__ import annotations

import pytest
import torch
from torch import nn

from roadkit.engine.bank import Bank
from roadkit.engine.bank.slots import IDENTITY
from roadkit.errors import AdapterError, BankFull, ExpressionError
from tests.engine.bank.toys import rotated_row, small


def test_least_recently_used_row_is_evicted(model):
    bank = Bank(model, {name: small(i) for i, name in enumerate("abc")}, slots=2)
    rows = {}
    for name in ("a", "b", "a", "c"):
        rows[name] = bank.acquire(bank.parse(name))
        bank.release(rows[name])
    assert set(bank.resident()) == {rows["a"].key, rows["c"].key}
    assert rows["c"].slot == rows["b"].slot
    assert bank.acquire(bank.parse("a")).slot == rows["a"].slot


def test_rows_in_use_are_never_evicted(model):
    adapters = {name: small(i) for i, name in enumerate("abcd")}
    bank, x = Bank(model, adapters, slots=2), torch.randn(2, 6)
    held = bank.acquire(bank.parse("a"))
    for name in "bcd":  # `a` is the least recently used all the while
        with bank.rows([name]):
            assert bank.resident()[held.key] == held.slot
    for name in "bcdbcd":
        with bank.rows([name, "a"]):
            torch.testing.assert_close(model["q"](x)[1], rotated_row(model, adapters["a"], x, 1))
    assert bank.resident()[held.key] == held.slot
    again = bank.acquire(bank.parse("a"))
    bank.release(held)
    with pytest.raises(BankFull), bank.rows(["b", "c"]):  # still held once
        pass
    bank.release(again)
    with bank.rows(["b", "c"]):
        assert held.key not in bank.resident()


def test_full_bank_says_so_and_loses_nothing(model):
    bank = Bank(model, {name: small(i) for i, name in enumerate("abc")}, slots=2)
    with pytest.raises(BankFull, match="all 2 bank slots are in use; raise slots or wait"), bank.rows(["a", "b", "c"]):
        pass
    assert not bank.num_held
    with bank.rows(["c", "b", "c", None]):
        pass


def test_base_needs_no_slot(model):
    bank, x = Bank(model, {"a": small(1)}, slots=1), torch.randn(3, 6)
    held = bank.acquire(bank.parse("a"))
    with bank.rows([None, None, None]):
        assert torch.equal(model["q"](x), nn.functional.linear(x, model["q"].weight, model["q"].bias))
    assert bank.acquire(()).slot == IDENTITY
    bank.release(bank.acquire(()))
    bank.release(held)


def test_equal_content_shares_a_row(model, tmp_path):
    small(1).save(tmp_path / "a")
    bank = Bank(model, {"one": small(1), "same": small(1), "file": tmp_path / "a", "other": small(2)}, slots=2)
    with bank.rows(["one", "same", "file", "same*1", "other", "1.0*other"]):
        assert len(bank.resident()) == 2
    with bank.rows(["one*0.5", "0.50*file"]):
        assert bank.num_held == 1


def test_what_cannot_be_composed_takes_no_slot(model, tmp_path):
    bank = Bank(model, {"good": small(1), "two": small(2, group_size=2), "bad": tmp_path}, slots=1)
    for _ in range(3):
        for text, error in (("bad", AdapterError), ("good + two", AdapterError), ("nobody", ExpressionError)):
            with pytest.raises(error):
                bank.acquire(bank.parse(text))
    with bank.rows(["good"]):
        pass


def test_a_row_that_could_not_be_written_is_not_found_again(model, monkeypatch):
    """As when the device has no memory left at that moment."""
    bank, x = Bank(model, {"a": small(1)}, slots=1), torch.randn(1, 6)
    with bank.rows(["a"]):
        expected = model["q"](x)
    bank.add("a", small(2))
    write = bank._buffer.write
    monkeypatch.setattr(bank._buffer, "write", lambda slot, adapter: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bank.acquire(bank.parse("a"))
    assert not bank.resident() and not bank.num_held
    monkeypatch.setattr(bank._buffer, "write", write)
    with bank.rows(["a"]):
        torch.testing.assert_close(model["q"](x)[0], rotated_row(model, small(2), x, 0))
        assert not torch.equal(model["q"](x), expected)
