"""Rows of a ledger, made by hand."""

from __future__ import annotations


def glue_row(method="road_1", rate=1e-3, seed=0, validation=0.5, test=0.5, **changes):
    setup = {
        "experiment": "glue", "scale": "small", "model": "minilm", "rows": 10, "epochs": 9, "bf16": False,
        "search_epochs": None, "task": "rte", "method": method, "learning_rate": rate,
    }  # fmt: skip
    trainable = {"head": 0, "road_1": 100}.get(method, 1000)
    metrics = {"metric": "accuracy", "validation": validation, "test": test, "trainable": trainable}
    return {"recipe": setup | changes, "seed": seed, "metrics": metrics}


def search_and_runs(**changes):
    """Three rates tried in runs of 2 epochs; the best of them, 2e-3, runs for 9 epochs with two seeds."""
    search = [
        glue_row(rate=rate, validation=validation, test=0.1, epochs=2, **changes)
        for rate, validation in ((1e-3, 0.4), (2e-3, 0.8), (3e-3, 0.6))
    ]
    final = [
        glue_row(rate=2e-3, seed=seed, test=test, search_epochs=2, **changes) for seed, test in enumerate((0.6, 0.8))
    ]
    return search, final


def append_run(ledger, method, rate, seed, validation, test, **changes):
    setup = {
        "experiment": "glue", "scale": "small", "model": "minilm", "rows": 10, "test": 20, "epochs": 1, "task": "rte",
        "method": method, "learning_rate": rate,
    }  # fmt: skip
    metrics = {"metric": "accuracy", "validation": validation, "test": test, "trainable": 1234}
    ledger.append(setup | changes, seed=seed, metrics=metrics, seconds=1.0)
