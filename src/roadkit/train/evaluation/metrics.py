"""Metrics of classification and regression, as the GLUE benchmark defines them.

    classification_metrics(predicted, gold)      # {"accuracy": 0.81, "f1": 0.79, "matthews": 0.62}
    regression_metrics(predicted, gold)          # {"pearson": 0.86, "spearman": 0.85}

Small formulas on numpy vectors; roadkit depends on neither scikit-learn nor scipy.
"""

from __future__ import annotations

import numpy as np


def accuracy(predicted: np.ndarray, gold: np.ndarray) -> float:
    """Share of equal entries."""
    return float(np.mean(predicted == gold))


def f1(predicted: np.ndarray, gold: np.ndarray) -> float:
    """Of class 1 if there are two classes (GLUE's), else the mean over the classes that occur. 0 if it is undefined."""
    classes = np.union1d(predicted, gold)
    if np.all(classes <= 1):
        classes = np.array([1])
    scores = []
    for number in classes:
        hits = float(np.sum((predicted == number) & (gold == number)))
        named = float(np.sum(predicted == number) + np.sum(gold == number))
        scores.append(2 * hits / named if named else 0.0)
    return float(np.mean(scores))


def matthews(predicted: np.ndarray, gold: np.ndarray) -> float:
    """Matthews correlation, also of more than two classes (Gorodkin's R_K). 0 if either side is constant."""
    size = int(max(predicted.max(), gold.max())) + 1
    table = np.zeros((size, size))
    np.add.at(table, (gold.astype(int), predicted.astype(int)), 1)
    true, named, total, right = table.sum(1), table.sum(0), table.sum(), np.trace(table)
    spread = np.sqrt((total**2 - named @ named) * (total**2 - true @ true))
    return float((right * total - true @ named) / spread) if spread else 0.0


def pearson(predicted: np.ndarray, gold: np.ndarray) -> float:
    """Linear correlation. 0 if either side is constant."""
    x, y = predicted - predicted.mean(), gold - gold.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size else 0.0


def spearman(predicted: np.ndarray, gold: np.ndarray) -> float:
    """Correlation of ranks; equal values share their mean rank."""
    return pearson(_ranks(predicted), _ranks(gold))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def label_metrics(task: str, scores: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    """Metrics of a model's outputs [rows, classes], or [rows, 1] for the task regression, against labels [rows]."""
    if task == "regression":
        return regression_metrics(np.squeeze(scores, -1), gold)
    return classification_metrics(scores.argmax(-1), gold)


def classification_metrics(predicted: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    """Class numbers, two vectors of one length → accuracy, f1, matthews."""
    return {name: function(predicted, gold) for name, function in _CLASSES.items()}


def regression_metrics(predicted: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    """Scores, two vectors of one length → pearson, spearman."""
    wide = predicted.astype(np.float64), gold.astype(np.float64)
    return {name: function(*wide) for name, function in _SCORES.items()}


_CLASSES = {"accuracy": accuracy, "f1": f1, "matthews": matthews}
_SCORES = {"pearson": pearson, "spearman": spearman}
