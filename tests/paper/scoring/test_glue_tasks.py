"""The development set is cut as in the paper, and missing rows are named."""

from __future__ import annotations

import pytest

from paper.scoring.glue_tasks import split_dev
from roadkit.train.data.tables import Table


def table_of(count: int) -> Table:
    return Table([{"i": i} for i in range(count)], list(range(1, count + 1)), "ours")


@pytest.mark.parametrize(("count", "validation"), [(277, 139), (1043, 522), (2000, 1000), (2001, 1000), (5463, 1000)])
def test_the_development_set_is_cut_as_in_the_paper(count, validation):
    first, second = split_dev(table_of(count), seed=0)
    assert (len(first), len(second)) == (validation, count - validation)
    assert {row["i"] for row in (*first.rows, *second.rows)} == set(range(count))
    assert split_dev(table_of(count), seed=0)[0].rows == first.rows
