"""Folds keep groups whole and classes even."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clip import Clip
from pipeline.splits import group_folds, groups, leaks


def clip(
    number: int, group: str | None, label: int | None, split: str = "train", subject: str | None = None
) -> Clip:
    labels = None if label is None else (label,)
    return Clip(
        f"c{number}", "d", f"{number}.mp4", label_ids=labels, group_id=group, split=split, subject_id=subject
    )


def test_groups_are_named_by_their_column_or_their_file() -> None:
    clips = [clip(0, "g", 0, subject="s"), clip(1, None, 0, subject="s"), clip(2, None, 0)]
    assert groups(clips) == ["g", "1.mp4", "2.mp4"]
    assert groups(clips, "subject_id") == ["s", "s", "2.mp4"]


def test_leaks_are_reported_once_a_group() -> None:
    clips = [
        clip(0, "g", 0),
        clip(1, "g", 0, "val"),
        clip(2, "g", 0, "test"),
        clip(3, "h", 0),
        clip(4, "h", 0, "unsplit"),
        clip(5, None, 0),
        clip(6, None, 0, "val"),
    ]
    assert list(leaks(clips)) == [(1, 0)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 15), st.none() | st.integers(0, 4)), min_size=1, max_size=80),
    st.integers(2, 5),
    st.integers(0, 3),
)
def test_no_group_is_parted(rows: list[tuple[int, int | None]], folds: int, seed: int) -> None:
    clips = [clip(i, f"g{group}", label) for i, (group, label) in enumerate(rows)]
    if len({group for group, _ in rows}) < folds:
        with pytest.raises(ValueError, match="do not fill"):
            group_folds(clips, folds, seed)
        return
    fold = group_folds(clips, folds, seed)
    assert {int(one) for one in fold} <= set(range(folds))
    for group in {group for group, _ in rows}:
        assert len({int(one) for one, row in zip(fold, rows, strict=True) if row[0] == group}) == 1
    assert (fold == group_folds(clips, folds, seed)).all()


def test_classes_are_spread_evenly() -> None:
    random = np.random.default_rng(0)
    labels = np.minimum(random.geometric(0.2, 3000) - 1, 9)
    clips = [clip(i, f"g{i // 3}", int(label)) for i, label in enumerate(labels)]
    fold = group_folds(clips, 5)
    held = np.array([np.bincount(labels[fold == one], minlength=10) for one in range(5)])
    assert (np.ptp(held, axis=0) <= 6).all(), held
    assert np.ptp(held.sum(1)) <= 9
