"""Tables show the chosen runs, never several scales at once, and say what is missing."""

from __future__ import annotations

from paper.report.tables import result_tables
from tests.paper.report.conftest import append_run


def test_the_rate_chosen_on_validation_is_shown_not_the_best_on_test(ledger):
    append_run(ledger, "road_1", 1e-3, 0, validation=0.7, test=0.5)
    append_run(ledger, "road_1", 3e-3, 0, validation=0.6, test=0.9)
    append_run(ledger, "road_1", 1e-3, 1, validation=0.1, test=0.7)
    table = result_tables(ledger.rows())["glue"]
    assert "| RoAd1 | 1,234 | 60.0 ± 14.1 (2) | 60.0 |" in table
    assert "small: minilm, 10 training rows, 1 epoch, up to 20 test rows, 2 seeds" in table


def test_scales_never_share_a_table_and_gaps_have_no_mean(ledger):
    append_run(ledger, "road_1", 1e-3, 0, 0.7, 0.5)
    append_run(ledger, "road_1", 1e-3, 0, 0.7, 0.6, task="cola")
    append_run(ledger, "lora", 1e-3, 0, 0.7, 0.6)
    append_run(ledger, "lora", 1e-3, 0, 0.7, 0.9, rows=99)
    table = result_tables(ledger.rows())["glue"]
    assert table.count("*small: ") == 2
    assert "| LoRA r=8 | 1,234 | 60.0 (1) | – | – |" in table
    assert "| RoAd1 | 1,234 | 50.0 (1) | 60.0 (1) | 55.0 |" in table


def test_an_experiment_without_runs_says_so():
    found = result_tables([])
    assert {text for name, text in found.items() if not name.startswith("paper_")} == {"No finished run yet."}
    assert all("quoted from arXiv" in text for name, text in found.items() if name.startswith("paper_"))
