"""Folds keep groups whole and classes even."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clip import Clip
from pipeline.errors import UserError
from pipeline.manifest import Manifest
from pipeline.splits import group_folds, groups, leaks, resplit
from pipeline.taxonomy import from_labels
from pipeline.validate import validate


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


def test_a_dataset_is_split_anew_and_tests_stay() -> None:
    splits = ("unsplit", "train", "test")
    clips = tuple(clip(i, f"g{i // 3}", i % 2, splits[i // 30], subject=f"s{i // 6}") for i in range(90))
    manifest = Manifest("own", Path("/videos"), from_labels("own", ["nod", "wave"]), clips)
    tested = []
    for fold in range(5):
        new = resplit(manifest, "own_f", 5, fold, by="subject_id")
        assert [one.clip_id for one in new.clips] == [one.clip_id for one in manifest.clips]
        assert {one.dataset for one in new.clips} == {"own_f"}
        held = {
            split: {one.clip_id for one in new.clips if one.split == split}
            for split in ("train", "val", "test")
        }
        assert held["test"] == {one.clip_id for one in clips if one.split == "test"}
        assert len(held["val"]) == 12
        assert not validate(new, levels=("table",)).counts.get("W_SPLIT_LEAK_GROUP")
        people = [
            {one.subject_id for one in new.clips if one.clip_id in held[split]} for split in ("train", "val")
        ]
        assert not people[0] & people[1]
        tested += sorted(held["val"])
    assert len(tested) == len(set(tested)) == 60  # every clip validates once
    for arguments, message in (((9, 9), "want 0 to 8"), ((99, 0), "20 groups do not fill 99 folds")):
        with pytest.raises(UserError, match=message):
            resplit(manifest, "own_f", *arguments)
    with pytest.raises(UserError, match="want group_id or subject_id"):
        resplit(manifest, "own_f", 5, 0, by="label_ids")
    nobody = Manifest("own", Path("/videos"), manifest.taxonomy, (clip(0, "g", 0), clip(1, "h", 0)))
    with pytest.raises(UserError, match="2 clips have no subject_id"):
        resplit(nobody, "own_f", 2, 0, by="subject_id")
