"""Benchmarks are run once, and their figures kept."""

from __future__ import annotations

from paper.runs.efficiency import run_efficiency


def test_a_benchmark_is_measured_once(ledger):
    told = []
    for _ in range(2):
        run_efficiency(ledger, names=["merge"], rounds=1, progress=told.append)
    (row,) = ledger.rows()
    assert row["metrics"]["peft_merge_over_ours"] > 0 and row["seconds"] > 0  # of the process that measured
    assert len(told) == 1
