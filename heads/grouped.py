"""Scores of clips that are no independent samples: views of one interval, persons of one scene, parts of a recording.

Two things follow. The views of one event are one sample with several looks at it: their probabilities are averaged
and the event is scored once. And the score of a data set is less certain than its number of clips suggests: its
interval comes from drawing whole groups, never clips.
"""

from collections.abc import Sequence

import numpy as np

from heads import metrics
from heads.features import SplitFeatures

DRAWS = 1000
SHARE = 95  # per cent of the draws that lie in an interval


def scores(data: SplitFeatures, probabilities: np.ndarray, coarse: Sequence[int] = ()) -> dict[str, float]:
    """All of `heads.metrics.scores` for a split, and where its clips are not independent also

    event_*: the same scores with one vote per event, where events have several views;
    top1_low, top1_high, f1_macro_low, f1_macro_high: the 95 % interval, where groups have several clips.
    """
    label = data.label.cpu().numpy()
    found = metrics.scores(label, probabilities, coarse)
    if len(set(data.group)) < len(data.group):
        found |= intervals(label, probabilities, data.group)
    if len(set(data.event)) < len(data.event):
        truth, mean = fused(label, probabilities, data.event)
        found |= {f"event_{name}": value for name, value in metrics.scores(truth, mean, coarse).items()}
    return found


def fused(
    label: np.ndarray, probabilities: np.ndarray, event: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and mean probabilities of the events; all clips of an event have its label."""
    _, first, of = np.unique(np.array(event), return_index=True, return_inverse=True)
    mean = np.zeros((len(first), probabilities.shape[1]))
    np.add.at(mean, of, probabilities)
    return label[first], mean / np.bincount(of)[:, None]


def intervals(label: np.ndarray, probabilities: np.ndarray, group: Sequence[str]) -> dict[str, float]:
    """Low and high end of top1 (single labels) and f1_macro when groups are drawn again, with replacement, seeded."""
    _, of = np.unique(np.array(group), return_inverse=True)
    n, classes = int(of.max()) + 1, probabilities.shape[1]
    random = np.random.default_rng(0)
    if label.ndim == 2:
        truth, guess = label > 0, probabilities >= 0.5
    else:
        truth, guess = (
            np.eye(classes, dtype=bool)[label],
            np.eye(classes, dtype=bool)[probabilities.argmax(1)],
        )
    held = np.zeros((n, 2, classes))  # hits, and twice hits + false alarms + misses, by group and class
    np.add.at(held, of, np.stack([truth & guess, truth.astype(int) + guess], 1))
    clips = np.bincount(of)
    drawn: dict[str, list[float]] = {"top1": [], "f1_macro": []}
    for _ in range(DRAWS):
        weight = random.multinomial(n, np.full(n, 1 / n))
        hits, involved = np.tensordot(weight, held, 1)
        drawn["top1"].append(hits.sum() / max(weight @ clips, 1))
        drawn["f1_macro"].append((2 * hits / np.maximum(involved, 1)).mean())
    if label.ndim == 2:
        del drawn["top1"]
    ends = {"low": (100 - SHARE) / 2, "high": (100 + SHARE) / 2}
    return {
        f"{name}_{end}": float(np.percentile(v, at)) for name, v in drawn.items() for end, at in ends.items()
    }
