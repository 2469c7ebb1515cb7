"""Splits that keep together what belongs together: the views of an interval, the clips of a recording or a person.

Clips of one group are no independent samples: a head that trains on one and is tested on another scores too high.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from pipeline.clip import Clip, check_dataset_name
from pipeline.errors import UserError
from pipeline.manifest import Manifest

KEPT = "test"  # this split is nobody's to draw again


def resplit(
    manifest: Manifest, name: str, folds: int, fold: int, seed: int = 0, by: str = "group_id"
) -> Manifest:
    """The dataset under another name, split anew: one of `group_folds` is val, the others train, test stays.

    Raises UserError for a fold or column that is not there, or fewer groups than folds.
    """
    if by not in ("group_id", "subject_id"):
        raise UserError(f"--by {by}: want group_id or subject_id")
    if not 0 <= fold < folds:
        raise UserError(f"--fold {fold}: want 0 to {folds - 1} of {folds} folds")
    drawn = [clip for clip in manifest.clips if clip.split != KEPT]
    if by == "subject_id" and (unknown := sum(clip.subject_id is None for clip in drawn)):
        raise UserError(f"{manifest.dataset}: {unknown} clips have no subject_id; split --by group_id")
    try:
        fold_of = group_folds(drawn, folds, seed, by)
    except ValueError as error:
        raise UserError(f"{manifest.dataset}: {error}; take fewer --folds") from None
    split_of = {
        clip.clip_id: "val" if one == fold else "train" for clip, one in zip(drawn, fold_of, strict=True)
    }
    clips = [
        replace(clip, dataset=name, split=split_of.get(clip.clip_id, KEPT), protocol="custom")
        for clip in manifest.clips
    ]
    return replace(manifest, dataset=check_dataset_name(name), clips=tuple(clips))


def events(clips: Sequence[Clip]) -> list[str]:
    """What every clip shows, whichever camera shows it: alike for the views of one person in one interval.

    Views are clips of one group with the same person, frames and labels.
    """
    return [
        repr((group, clip.person_id or clip.subject_id, clip.start_frame, clip.end_frame, clip.label_ids))
        for group, clip in zip(groups(clips), clips, strict=True)
    ]


def groups(clips: Sequence[Clip], by: str = "group_id") -> list[str]:
    """The group of every clip: its column `by` ("group_id" or "subject_id"), else its file."""
    return [getattr(clip, by) or clip.media_path for clip in clips]


def leaks(clips: Sequence[Clip], by: str = "group_id") -> Iterator[tuple[int, int]]:
    """Positions (clip, earlier clip) of a group that is in two splits of one protocol; every group once.

    Clips that are unsplit, or have no value in column `by`, do not count.
    """
    first: dict[tuple[str, str], int] = {}
    reported: set[tuple[str, str]] = set()
    for position, clip in enumerate(clips):
        name = getattr(clip, by)
        if name is None or clip.split == "unsplit":
            continue
        key = (clip.protocol, name)
        earlier = first.setdefault(key, position)
        if clips[earlier].split != clip.split and key not in reported:
            reported.add(key)
            yield position, earlier


def group_folds(clips: Sequence[Clip], folds: int, seed: int = 0, by: str = "group_id") -> np.ndarray:
    """Fold of every clip, int64 [clips] in 0..folds-1: no group is in two, and every class is spread evenly.

    Greedy: groups with the most uneven labels first (ties in an order drawn from `seed`), each into the fold that
    leaves the classes most even. One fold of n as the validation split holds about 1/n of every class. Clips
    without labels spread by number. Raises ValueError for fewer groups than folds.
    """
    names, group_of = np.unique(groups(clips, by), return_inverse=True)
    if not 2 <= folds <= len(names):
        raise ValueError(f"{len(names)} groups do not fill {folds} folds")
    classes = 1 + max((max(clip.label_ids) for clip in clips if clip.label_ids), default=-1)
    counts = np.zeros((len(names), classes + 1))  # the last column: clips, whatever their labels
    for group, clip in zip(group_of, clips, strict=True):
        counts[group, [*(clip.label_ids or ()), -1]] += 1
    shares = counts / np.maximum(counts.sum(0), 1)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    order = shuffled[np.argsort(-counts[shuffled].std(1), kind="stable")]
    held = np.zeros((folds, classes + 1))
    fold_of = np.zeros(len(names), np.int64)
    for group in order:
        # Adding s to fold f raises the sum of squares by 2 s h_f + s^2: the least is where the least is held.
        fold_of[group] = fold = int(np.argmin(held @ shares[group]))
        held[fold] += shares[group]
    return fold_of[group_of]
