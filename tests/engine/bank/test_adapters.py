from __future__ import annotations

import resource

import pytest
import torch
from torch import nn

from roadkit.engine.bank import Bank
from roadkit.errors import AdapterError, ExpressionError
from tests.engine.bank.toys import rotated_row, small


def test_new_version_leaves_running_rows_as_they_are(model):
    old, new = small(1), small(2)
    bank, x = Bank(model, {"a": old}, slots=2), torch.randn(2, 6)
    with bank.rows(["a", None]):
        bank.add("a", new)
        torch.testing.assert_close(model["q"](x)[0], rotated_row(model, old, x, 0))
        with bank.rows(["a", None]):
            torch.testing.assert_close(model["q"](x)[0], rotated_row(model, new, x, 0))
        torch.testing.assert_close(model["q"](x)[0], rotated_row(model, old, x, 0))
    with bank.rows(["a", None]):
        torch.testing.assert_close(model["q"](x)[0], rotated_row(model, new, x, 0))


def test_replaced_directory_is_read_when_it_is_read_again(model, tmp_path):
    """Content, not the name or path, identifies a row: what was cached under it is never another adapter's."""
    old, new = small(1), small(2)
    old.save(tmp_path / "a")
    bank = Bank(model, {"a": tmp_path / "a", "b": small(3)}, slots=1)
    before = bank.acquire(bank.parse("a"))
    bank.release(before)
    new.save(tmp_path / "a")
    bank.add("a", tmp_path / "a")
    after = bank.acquire(bank.parse("a"))
    assert after.key == new.content_hash != before.key == old.content_hash
    bank.release(after)


def test_removed_names_are_unknown_and_their_rows_go_on(model):
    one = small(1)
    bank, x = Bank(model, {"one": one, "other": small(2)}), torch.randn(1, 6)
    terms = bank.parse("one")
    with bank.rows(["one"]):
        bank.remove("one")
        torch.testing.assert_close(model["q"](x)[0], rotated_row(model, one, x, 0))
    assert bank.names == ("other",)
    with pytest.raises(ExpressionError, match="no adapter 'one'"):
        bank.parse("one")
    with pytest.raises(ExpressionError, match="adapter 'one' has been removed"):
        bank.acquire(terms)
    with pytest.raises(ExpressionError, match="no adapter 'onee'"):
        bank.remove("onee")


@pytest.mark.parametrize("name", ["", " ", "a b", "-a", "a*b", "a+b", "é", "a\n", ".a"])
def test_names_that_no_expression_could_say_are_refused(model, name):
    with pytest.raises(AdapterError, match="is no adapter name"):
        Bank(model).add(name, small(1))


def test_what_does_not_fit_is_refused_when_added_and_directories_when_used(model, tmp_path):
    bank = Bank(model, {"good": small(1)})
    with pytest.raises(AdapterError, match="q: adapter is 12 wide, layer 8"):
        bank.add("wide", small(1, width=12))
    with pytest.raises(AdapterError, match="adapter 'gone': no such directory: gone"):
        bank.add("gone", "gone")
    small(1, width=12).save(tmp_path / "wide")
    bank.add("wide", tmp_path / "wide")
    bank.add("empty", str(tmp_path / "nowhere"))
    with pytest.raises(AdapterError, match="q: adapter is 12 wide, layer 8"), bank.rows(["wide"]):
        pass
    with pytest.raises(AdapterError, match="no such directory"), bank.rows(["good", "empty"]):
        pass
    assert not bank.num_held
    with bank.rows(["good"]):
        pass


def test_a_thousand_registered_directories_cost_no_memory(model, tmp_path):
    wide = nn.ModuleDict({"q": nn.Linear(2, 65536)})
    adapter = small(1, width=65536)  # half a megabyte of rows, a quarter on disk
    adapter.save(tmp_path / "a")
    bank = Bank(wide, {"first": tmp_path / "a"}, slots=2)
    with bank.rows(["first"]):
        pass
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(1000):
        bank.add(f"a{i}", tmp_path / "a")
    for i in range(0, 1000, 20):
        with bank.rows([f"a{i}", None]):
            pass
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 20 * 1024, f"{grown / 1024:.0f} MiB more for 1,000 names; loading them all would take 750"
    assert len(bank.names) == 1001
