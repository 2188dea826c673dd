"""The small formulas against worked values and, if they are installed, scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest

from roadkit.train.evaluation import metrics

GOLD = np.array([1, 1, 1, 0, 0, 0, 0, 1])
NAMED = np.array([1, 1, 0, 0, 0, 1, 0, 1])


def test_two_classes_worked_by_hand():
    found = metrics.classification_metrics(NAMED, GOLD)  # 3 hits, 1 false alarm, 1 miss, 3 right rejections
    assert found == {"accuracy": 0.75, "f1": 0.75, "matthews": 0.5}


def test_constant_answers_have_no_correlation():
    assert metrics.matthews(np.zeros(4), GOLD[:4]) == 0
    assert metrics.pearson(np.ones(4), GOLD[:4]) == 0
    assert metrics.f1(np.zeros(3), np.zeros(3)) == 0


def test_spearman_sees_order_alone():
    x = np.array([1.0, 2.0, 2.0, 9.0])
    assert metrics.spearman(np.exp(x), x) == pytest.approx(1)
    assert metrics.spearman(-x, x) == pytest.approx(-1)
    assert metrics.pearson(np.exp(x), x) < 0.995


def test_agrees_with_scikit_learn():
    learn = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    gold, named = random.integers(0, 4, 200), random.integers(0, 4, 200)
    named[:120] = gold[:120]
    assert metrics.matthews(named, gold) == pytest.approx(learn.matthews_corrcoef(gold, named))
    assert metrics.f1(named, gold) == pytest.approx(learn.f1_score(gold, named, average="macro"))
    assert metrics.f1(NAMED, GOLD) == pytest.approx(learn.f1_score(GOLD, NAMED))


def test_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(0)
    x = random.integers(0, 9, 60).astype(float)
    y = x + random.normal(size=60)
    found = metrics.regression_metrics(x, y)
    assert found["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)
