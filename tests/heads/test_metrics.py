"""Scores against scikit-learn on random predictions."""

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    top_k_accuracy_score,
)

from heads.metrics import average_precision, confusion, f1_mean, scores


@pytest.mark.parametrize("seed", range(20))
def test_equals_sklearn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes, n = int(rng.integers(6, 53)), int(rng.integers(1, 200))
    labels = rng.integers(0, rng.integers(1, classes + 1), n)  # often with classes that never occur
    probabilities = rng.dirichlet(np.ones(classes), n) + np.eye(classes)[labels] * rng.random((n, 1)) * 0.3
    coarse = np.arange(classes) // 3
    found = scores(labels, probabilities, coarse.tolist())
    predicted = probabilities.argmax(1)
    every = range(classes)

    def macro(truth: np.ndarray, guess: np.ndarray, groups: range) -> float:
        return f1_score(truth, guess, labels=groups, average="macro", zero_division=0.0)

    assert found["top1"] == pytest.approx(accuracy_score(labels, predicted))
    assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, probabilities, k=5, labels=every))
    assert found["f1_macro"] == pytest.approx(macro(labels, predicted, every))
    groups = range(int(coarse.max()) + 1)
    assert found["coarse_top1"] == pytest.approx(accuracy_score(coarse[labels], coarse[predicted]))
    assert found["coarse_f1_macro"] == pytest.approx(macro(coarse[labels], coarse[predicted], groups))
    micro = f1_score(labels, predicted, labels=every, average="micro")
    body = f1_score(coarse[labels], coarse[predicted], labels=groups, average="micro")
    total = found["coarse_f1_macro"] + body + found["f1_macro"] + micro
    assert found["f1_mean"] == pytest.approx(total / 4)
    assert (confusion(labels, probabilities) == confusion_matrix(labels, predicted, labels=every)).all()


def test_absent_class_counts_zero() -> None:
    """Three classes, the third neither true nor predicted: F1 is (1 + 1 + 0) / 3, not 1."""
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]])
    found = scores(np.array([0, 1]), probabilities)
    assert found == {"top1": 1.0, "top5": 1.0, "f1_macro": pytest.approx(2 / 3), "f1_micro": 1.0}


def test_one_coarse_class_for_all_is_no_score() -> None:
    labels, probabilities = np.array([0, 1, 2]), np.eye(3)[[0, 2, 1]]
    assert scores(labels, probabilities, [0, 0, 0]) == scores(labels, probabilities)
    assert "f1_mean" not in scores(labels, probabilities)


def test_official_mean() -> None:
    """The published test scores of MANet, in percent."""
    published = {"coarse_f1_macro": 72.87, "coarse_f1_micro": 78.95, "f1_macro": 49.22, "f1_micro": 61.33}
    assert round(f1_mean(published), 2) == 65.59


@pytest.mark.parametrize("seed", range(10))
def test_several_labels_equal_sklearn(seed: int) -> None:
    """Ties among the scores, classes without a clip, and clips without a label."""
    rng = np.random.default_rng(seed)
    classes, n = int(rng.integers(2, 15)), int(rng.integers(2, 150))
    truth = (rng.random((n, classes)) < rng.random(classes) * 0.5).astype(np.float32)
    probabilities = np.round(np.clip(rng.random((n, classes)) * 0.7 + truth * 0.3 * rng.random(), 0, 1), 1)
    known = [c for c in range(classes) if truth[:, c].any()]
    for c in known:
        expected = average_precision_score(truth[:, c], probabilities[:, c])
        assert average_precision(truth[:, c] > 0, probabilities[:, c]) == pytest.approx(expected)
    found = scores(truth, probabilities, [0] * classes)
    if known:
        expected = average_precision_score(truth[:, known], probabilities[:, known], average="macro")
        assert found["map"] == pytest.approx(expected)
    guess = probabilities >= 0.5
    for average in ("macro", "micro"):
        expected = f1_score(truth, guess, average=average, zero_division=0.0)
        assert found[f"f1_{average}"] == pytest.approx(expected)
