"""Scores of clips that belong together: one vote an event, and intervals from whole groups."""

import numpy as np
import pytest
import torch

from heads import grouped, metrics
from heads.features import SplitFeatures
from pipeline.clip import Clip
from pipeline.splits import events, groups

CLASSES = 6
COARSE = [0, 0, 0, 1, 1, 1]


def data(label: np.ndarray, group: list[str], event: list[str]) -> SplitFeatures:
    names = tuple(f"c{i}" for i in range(len(label)))
    return SplitFeatures(names, torch.from_numpy(label), {}, group=tuple(group), event=tuple(event))


def guesses(label: np.ndarray, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.dirichlet(np.ones(CLASSES), len(label)) + 0.2 * np.eye(CLASSES)[label]


def test_views_of_an_event_have_one_vote() -> None:
    """Two weak looks that agree beat a strong one that does not; the event counts once."""
    label = np.array([2, 2, 2, 4])
    probabilities = (
        np.array([[0, 0, 5, 4, 0, 0], [0, 0, 5, 4, 0, 0], [0, 0, 0, 6, 0, 0], [0, 0, 0, 0, 1, 0]]) / 9
    )
    found = grouped.scores(data(label, ["a", "a", "a", "b"], ["e", "e", "e", "f"]), probabilities, COARSE)
    assert found["top1"] == 0.75
    assert found["event_top1"] == 0.5  # (10, 14) / 27: class 3 wins the event
    truth, mean = grouped.fused(label, probabilities, ["e", "e", "e", "f"])
    assert truth.tolist() == [2, 4]
    assert np.allclose(mean[0], [0, 0, 10 / 27, 14 / 27, 0, 0])
    assert {name[6:] for name in found if name.startswith("event_")} == metrics.scores(
        truth, mean, COARSE
    ).keys()


def test_independent_clips_have_the_plain_scores() -> None:
    label = np.arange(12) % CLASSES
    names = [str(i) for i in range(12)]
    for group, event in (([], []), (names, names)):
        found = grouped.scores(data(label, group, event), guesses(label), COARSE)
        assert found == metrics.scores(label, guesses(label), COARSE)


def test_intervals_hold_the_score_and_widen_with_the_groups() -> None:
    """The same predictions, once as 400 samples and once as 20 recordings that stand or fall together."""
    random = np.random.default_rng(0)
    recording = np.arange(400) // 20
    label = random.integers(0, CLASSES, 400)
    right = (recording % 4 > 0) ^ (random.random(400) < 0.1)
    probabilities = np.eye(CLASSES)[np.where(right, label, (label + 1) % CLASSES)]
    top1 = metrics.scores(label, probabilities)["top1"]
    clips = grouped.intervals(label, probabilities, [str(i) for i in range(400)])
    whole = grouped.intervals(label, probabilities, [str(i) for i in recording])
    for found in (clips, whole):
        assert found["top1_low"] < top1 < found["top1_high"]
        assert found["f1_macro_low"] < found["f1_macro_high"]
    width = {
        name: found["top1_high"] - found["top1_low"] for name, found in (("clips", clips), ("whole", whole))
    }
    assert width["clips"] == pytest.approx(2 * 1.96 * np.sqrt(top1 * (1 - top1) / 400), rel=0.15)
    assert width["whole"] > 3 * width["clips"]
    assert whole == grouped.intervals(label, probabilities, [str(i) for i in recording])


def test_several_labels() -> None:
    random = np.random.default_rng(1)
    label = (random.random((30, CLASSES)) < 0.3).astype(np.float32)
    label[1::2] = label[::2]  # two views each
    pairs = [str(i // 2) for i in range(30)]
    found = grouped.scores(data(label, pairs, pairs), random.random((30, CLASSES)))
    assert {"map", "event_map", "f1_macro_low", "f1_macro_high"} <= found.keys()
    assert "top1_low" not in found


def test_events_are_views_of_one_person_in_one_interval() -> None:
    base = {"group_id": "g", "person_id": "p", "start_frame": 0, "end_frame": 9, "label_ids": (1,)}

    def clip(name: str, **values: object) -> Clip:
        return Clip(name, "d", f"{name}.mp4", **{**base, "camera_id": name, **values})  # type: ignore[arg-type]

    left, right = clip("left"), clip("right")
    others = [
        clip("a", person_id="q"),
        clip("b", start_frame=3),
        clip("c", label_ids=(2,)),
        clip("d", group_id="h"),
    ]
    names = events([left, right, *others])
    assert names[0] == names[1]
    assert len(set(names)) == 5
    alone = [clip("e", group_id=None), clip("f", group_id=None)]
    assert len(set(events(alone))) == len(set(groups(alone))) == 2
