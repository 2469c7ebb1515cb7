"""Scores as the official MA-52 test script defines them, with the classes fixed to all of the data set's.

Coarse predictions are the coarse class of the predicted class; there is no separate coarse head. A class
without clips and predictions counts 0 in macro F1, and for single labels micro F1 equals accuracy. All of
it follows from the confusion matrix, so an epoch costs microseconds; the tests hold it equal to scikit-learn.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np


def scores(labels: np.ndarray, probabilities: np.ndarray, coarse: Sequence[int] = ()) -> dict[str, float]:
    """All scores of a prediction, as shares of 1.

    Args:
        labels: int [N], class positions; or [N, C] of 0 and 1 where clips may have several. N > 0.
        probabilities: float [N, C]; for single labels any scores with the same order do.
        coarse: coarse class of every class; without it, or with one coarse class for all, which is always right,
            the coarse scores and f1_mean are left out.

    Returns:
        For single labels top1, top5 (top C below five classes), f1_macro, f1_micro; with coarse also
        coarse_top1, coarse_f1_macro, coarse_f1_micro and f1_mean. For several labels map, f1_macro and f1_micro
        at a threshold of 0.5.
    """
    if labels.ndim == 2:
        return _several(labels > 0, probabilities)
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    matrix = confusion(labels, probabilities)
    result = {
        "top1": _accuracy(matrix),
        "top5": float((best == labels[:, None]).any(1).mean()),
        "f1_macro": _macro(matrix),
        "f1_micro": _accuracy(matrix),
    }
    if len(set(coarse)) > 1:
        group = np.eye(max(coarse) + 1, dtype=np.int64)[list(coarse)]  # [C, coarse]
        matrix = group.T @ matrix @ group
        result["coarse_top1"] = _accuracy(matrix)
        result["coarse_f1_macro"] = _macro(matrix)
        result["coarse_f1_micro"] = _accuracy(matrix)
        result["f1_mean"] = f1_mean(result)
    return result


def f1_mean(found: Mapping[str, float]) -> float:
    """The mean of macro and micro F1, over the coarse classes and over the classes."""
    return fmean(found[part] for part in ("coarse_f1_macro", "coarse_f1_micro", "f1_macro", "f1_micro"))


def confusion(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """int64 [C, C]: rows true classes, columns predicted ones."""
    classes = probabilities.shape[1]
    pairs = labels * classes + probabilities.argmax(1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Sum over the distinct scores, from the highest down, of (step in recall) x precision; truth bool [N]."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # the last clip of every score
    precision = hits[ends] / (ends + 1)
    steps = np.diff(hits[ends], prepend=0) / max(hits[-1], 1)
    return float((precision * steps).sum())


def _several(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """map is the mean over the classes that have a clip."""
    known = [c for c in range(truth.shape[1]) if truth[:, c].any()]
    guess = probabilities >= 0.5
    hits, involved = (truth & guess).sum(0), truth.sum(0) + guess.sum(0)
    return {
        "map": float(np.mean([average_precision(truth[:, c], probabilities[:, c]) for c in known] or [0.0])),
        "f1_macro": float((2 * hits / np.maximum(involved, 1)).mean()),
        "f1_micro": float(2 * hits.sum() / max(involved.sum(), 1)),
    }


def _accuracy(matrix: np.ndarray) -> float:
    return float(matrix.trace() / matrix.sum())


def _macro(matrix: np.ndarray) -> float:
    """Unweighted mean over the classes of 2 TP / (2 TP + FP + FN), 0 where that is undefined."""
    involved = matrix.sum(0) + matrix.sum(1)
    return float((2 * matrix.diagonal() / np.maximum(involved, 1)).mean())
