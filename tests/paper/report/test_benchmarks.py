"""A benchmark's figures as tables."""

from __future__ import annotations

from paper.report.benchmarks import benchmark_tables


def test_rows_with_the_same_columns_make_a_table_and_single_figures_another():
    seconds = {"ours": {"median": 1.0, "min": 0.9, "max": 1.23456}, "theirs": {"median": 2.0}}
    found = benchmark_tables({"rounds": 3, "seconds": seconds, "ratio": 2.0, "machine": {"cpus": 2}})
    assert found == [
        (
            ["seconds", "median (least to most)", "median"],
            [["ours", "1 (0.9 to 1.235)", "–"], ["theirs", "–", "2"]],
        ),
        (["figure", "value"], [["rounds", "3"], ["ratio", "2"]]),
    ]


def test_rows_deeper_down_are_named_by_their_path():
    ((header, lines),) = benchmark_tables(
        {"tokens_per_second": {"left": {"lora": {"median": 10, "min": 9, "max": 11}}}}
    )
    assert header == ["tokens per second, left", "median (least to most)"]
    assert lines == [["lora", "10 (9 to 11)"]]


def test_a_methods_own_spread_and_large_counts():
    row = {"trainable": 155520, "step_s": 1.5, "step_s_min": 1.25, "step_s_max": 2.0, "reached": [True, False]}
    ((header, lines),) = benchmark_tables({"methods": {"road_1": row}, "targets": {"road_1": [1.1, 1.3]}})
    assert header == ["methods", "trainable", "step s (least to most)"]
    assert lines == [["road_1", "155,520", "1.5 (1.25 to 2)"]]
