"""Prometheus' labels."""

from roadkit.server.metrics import MAX_LABELS, Metrics


def test_metrics_labels_are_bounded():
    metrics = Metrics()
    seen = {metrics.bounded("t", f"a{i}") for i in range(10 * MAX_LABELS)}
    assert len(seen) == MAX_LABELS + 1 and ("t", "(other)") in seen
    tenants = {metrics.bounded(f"t{i}", "a")[0] for i in range(10 * MAX_LABELS)}
    assert len(tenants) == MAX_LABELS and "(other)" in tenants
