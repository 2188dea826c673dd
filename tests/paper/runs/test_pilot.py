"""Both pilot studies on a tiny encoder."""

from __future__ import annotations

from paper.runs.pilot import run_disentanglement, run_displacement


def test_pilot_studies_run(encoder, data, ledger):
    run_displacement(encoder, ledger, data=data, methods=["road_1", "full"])
    run_disentanglement(encoder, ledger, data=data, tasks=["stsb"], epochs=1)
    first, second, third, fourth = (row["metrics"] for row in ledger.rows())
    assert len(first["magnitude"]) == len(second["direction"]) == 2  # blocks
    assert second["direction"][-1]["q50"] < 1
    assert first["samples"] == encoder.validation + encoder.test  # every development row that was drawn
    assert set(third["scores"]) == {"output", "magnitude", "angle"}
    assert set(fourth["scores"]) == {"output"}
    setup = ledger.rows()[2]["recipe"]
    assert (setup["epochs"], setup["batch_size"]) == (1, 32) and "bf16" not in setup  # what a classifier trains with
