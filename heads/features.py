"""Cached features as resident tensors: ragged windows resampled to T steps, one row per labelled clip.

Clips that cannot be used are counted with the reason, never dropped in silence.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from heads.resample import resample_weights, truncate_weights
from heads.spec import MOTION, MOTION_LOGITS, SEMANTIC, FeatureReq, HeadInfo, head_info
from pipeline.clip import Clip
from pipeline.errors import UserError
from pipeline.spec import REGIONS, digest
from pipeline.splits import events, groups
from pipeline.store.reader import Cache, StageReader

if TYPE_CHECKING:
    from pipeline.taxonomy import Taxonomy

BLOCK = 256  # clips resampled at a time; 256 x 12 windows x 5 views x 1408 float32 are 87 MB
ALL = SEMANTIC + MOTION + MOTION_LOGITS


@dataclass(frozen=True)
class SplitFeatures:
    """One split, in the row order of the tensors (named in `heads.spec`).

    Attributes:
        key: the content address of every clip (`pipeline.clip.clip_key`); () for tensors that come from no cache.
        label: int64 [N], the class, -1 where it is unknown; float32 [N, C] of 0 and 1 where a clip may have
            several.
        group, event: what clips of one recording or scene, and views of one person in one interval, have in
            common (`pipeline.splits`); () where nobody asked.
    """

    clip_id: tuple[str, ...]
    label: Tensor
    tensors: dict[str, Tensor]
    key: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    event: tuple[str, ...] = ()

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """The tensors of the clips of an int64 index."""
        return {name: tensor.index_select(0, index) for name, tensor in self.tensors.items()}

    def target(self, classes: int) -> Tensor:
        """The labels as float32 [N, C] of 0 and 1."""
        return (
            self.label if self.label.ndim == 2 else torch.eye(classes, device=self.label.device)[self.label]
        )

    def to(self, device: torch.device | str) -> "SplitFeatures":
        """The same on another device."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return replace(self, label=self.label.to(device), tensors=moved)


@dataclass(frozen=True)
class FeatureSet:
    """Features of a data set.

    Attributes:
        splits: name -> features; a split without usable clips is missing.
        keys: stage -> key of the cache entry that was read.
        dim, motion_dim: D and Dm; 0 for a stream that was not read.
        counts: split -> reason -> clips. "used" plus all others is the number of clips of the manifest.
    """

    dataset: str
    taxonomy: "Taxonomy"
    splits: dict[str, SplitFeatures]
    keys: dict[str, str]
    dim: int
    motion_dim: int
    t_len: int
    t_mode: str
    counts: dict[str, dict[str, int]]

    def to(self, device: torch.device | str) -> "FeatureSet":
        """The same on another device."""
        return replace(self, splits={name: split.to(device) for name, split in self.splits.items()})

    def only(self, needs: Sequence[FeatureReq]) -> "FeatureSet":
        """Without the streams a head does not read. Raises UserError when one it reads is not there."""
        wanted = {need.stage for need in needs}
        if missing := sorted(wanted - self.keys.keys()):
            raise UserError(
                f"{self.dataset}: {missing[0]} features were not loaded; load them with the others"
            )
        starts = tuple("sem_" if stage == "semantic" else stage for stage in wanted)
        splits = {
            n: replace(s, tensors={k: t for k, t in s.tensors.items() if k.startswith(starts)})
            for n, s in self.splits.items()
        }
        return replace(
            self,
            splits=splits,
            keys={stage: key for stage, key in self.keys.items() if stage in wanted},
            dim=self.dim if "semantic" in wanted else 0,
            motion_dim=self.motion_dim if "motion" in wanted else 0,
        )

    def info(self, label_vectors: np.ndarray) -> HeadInfo:
        """What a head is told. Label ids run 0, 1, 2, ... and so are positions too."""
        return head_info(self.taxonomy, self.dim, self.motion_dim, label_vectors)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what these tensors are: clips and their content, labels, stages, and the resampling."""
        clips = {name: [s.clip_id, s.key, s.label.tolist()] for name, s in self.splits.items()}
        facts = {"clips": clips, "stages": self.keys, "t_len": self.t_len, "t_mode": self.t_mode}
        return digest(facts)


def load_features(
    cache_root: Path,
    dataset: str,
    t_len: int = 8,
    t_mode: str = "resample",
    *,
    needs: Sequence[FeatureReq] = ALL,
    splits: Iterable[str] = ("train", "val"),
    unlabelled: bool = False,
) -> FeatureSet:
    """Everything a head needs of a data set, in memory.

    Args:
        cache_root: the cache folder.
        dataset: name of the data set in it.
        t_len: T, the steps every clip is brought to.
        t_mode: "resample", linear interpolation over the whole clip, or "pad_truncate", the first T windows.
        needs: the arrays to read.
        splits: the splits to read.
        unlabelled: also read clips without a label.

    Raises:
        UserError: no such cache or data set, an array is missing (with the command that makes it), or rows are
            damaged.
    """
    cache = Cache(cache_root, check=True)  # 0.3 s a gigabyte; no head learns from flipped bits
    manifest = cache.dataset(dataset)
    keys, stages, quarantined = _open_stages(cache, dataset, needs)
    clip_keys = cache.clip_keys(dataset)
    taxonomy = manifest.taxonomy
    rows: dict[str, list[tuple[Clip, str, Tensor]]] = {name: [] for name in splits}
    counts: dict[str, dict[str, int]] = {name: {"used": 0} for name in rows}
    for clip in manifest.clips:
        if clip.split not in rows:
            continue
        key = clip_keys.get(clip.clip_id)
        label, reason = _label(clip.label_ids, taxonomy), "used"
        if label is None and unlabelled:
            label = torch.tensor(-1)
        if not isinstance(label, Tensor):
            reason = label or "unlabelled"
        elif key is None:
            reason = "unreadable"
        elif any(key not in stage.clips for stage in stages.values()):
            reason = "quarantined" if key in quarantined else "pending"
        else:
            rows[clip.split].append((clip, key, label))
        counts[clip.split][reason] = counts[clip.split].get(reason, 0) + 1
    read = {
        name: SplitFeatures(
            tuple(r[0].clip_id for r in chosen),
            torch.stack([r[2] for r in chosen]),
            _read_split([r[1] for r in chosen], stages, needs, t_len, t_mode),
            tuple(r[1] for r in chosen),
            tuple(groups([r[0] for r in chosen])),
            tuple(events([r[0] for r in chosen])),
        )
        for name, chosen in rows.items()
        if chosen
    }
    dims = [stages[s].arrays["features"].row_shape[-1] if s in stages else 0 for s in ("semantic", "motion")]
    return FeatureSet(dataset, taxonomy, read, keys, dims[0], dims[1], t_len, t_mode, counts)


def _open_stages(
    cache: Cache, dataset: str, needs: Sequence[FeatureReq]
) -> tuple[dict[str, str], dict[str, StageReader], set[str]]:
    """Keys and readers of the stages that are needed, and the clip keys any stage of the build quarantined.

    Refuses a cache that lacks an array.
    """
    root = cache.root
    command = f"bmoe-cache build --dataset {dataset} --cache {root} --preset "
    if not cache.built(dataset):
        raise UserError(f"{root}: {dataset} was not built here; make its features: {command}PRESET")
    build = cache.builds(dataset)
    built: dict[str, str] = build["stages"]
    command += build["preset"]
    stages: dict[str, StageReader] = {}
    for need in needs:
        if need.stage not in built:
            raise UserError(f"{root}: no {need.stage} features of {dataset}; make them: {command}")
        if need.stage not in stages:
            stages[need.stage] = cache.stage(need.stage, built[need.stage])
        array = stages[need.stage].arrays.get(need.array)
        if array is None or len(array.row_shape) != need.rank:
            what = "is missing" if array is None else f"has rank {len(array.row_shape)}, not {need.rank}"
            raise UserError(f"{root}: array {need.array} of {need.stage} {what}; make it: {command}")
    return {stage: built[stage] for stage in stages}, stages, cache.quarantined(dataset)


def _label(ids: tuple[int, ...] | None, taxonomy: "Taxonomy") -> Tensor | str | None:
    """The label of a clip as a row of `SplitFeatures.label`, None when it has none, or why it cannot be used."""
    classes = len(taxonomy.labels)
    if ids is None or (not ids and taxonomy.label_kind != "multi"):
        return None
    if not all(0 <= i < classes for i in ids):
        return "unknown_label"
    if taxonomy.label_kind == "multi":
        row = torch.zeros(classes)
        row[list(ids)] = 1
        return row
    return torch.tensor(ids[0]) if len(ids) == 1 else "several_labels"


def _read_split(
    keys: list[str], stages: dict[str, StageReader], needs: Sequence[FeatureReq], t_len: int, t_mode: str
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for need in needs:
        if need in SEMANTIC:
            if "sem_full" not in tensors:
                tensors |= _semantic(keys, stages["semantic"], t_len, t_mode)
            continue
        stage, name = stages[need.stage], f"{need.stage}_{need.array}".removesuffix("_features")
        out = np.empty((len(keys), *stage.arrays[need.array].row_shape), np.float32)
        for row, key in enumerate(keys):
            found = stage.read(key, need.array)
            if len(found) != 1:
                raise UserError(
                    f"array {need.array} of {need.stage} has {len(found)} rows for a clip: besides semantic features "
                    "a head can read what has one row per clip"
                )
            out[row] = found[0]
        tensors[name] = torch.from_numpy(out)
    return tensors


def _semantic(keys: list[str], stage: StageReader, t_len: int, t_mode: str) -> dict[str, Tensor]:
    """sem_* tensors. Clips with the same number of windows are resampled together."""
    views = list(stage.facts["views"])
    order = [views.index(v) for v in ("full", *REGIONS)]
    dim = stage.arrays["features"].row_shape[-1]
    full = torch.empty(len(keys), t_len, dim)
    parts = torch.empty(len(keys), len(REGIONS), t_len, dim)
    valid = torch.empty(len(keys), len(order), t_len, dtype=torch.bool)
    by_count: dict[int, list[int]] = {}
    for row, key in enumerate(keys):
        by_count.setdefault(stage.clips[key].n_rows, []).append(row)
    for rows in by_count.values():
        for block in (rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)):
            x = torch.from_numpy(np.stack([stage.read(keys[r], "features") for r in block])[:, :, order])
            present = np.stack([stage.read(keys[r], "present") for r in block])[:, :, order] > 0
            if t_mode == "resample":
                starts = np.array([stage.clips[keys[r]].facts["start_frames"] for r in block], np.float64)
                weights, ok = resample_weights(present, starts, t_len)
            else:
                weights, ok = truncate_weights(present, t_len)
            y = torch.from_numpy(weights) @ x.float().transpose(1, 2)
            full[block], parts[block] = y[:, 0], y[:, 1:]
            valid[block] = torch.from_numpy(ok)
    return {
        "sem_full": full,
        "sem_full_valid": valid[:, 0].contiguous(),
        "sem_parts": parts,
        "sem_parts_valid": valid[:, 1:].contiguous(),
    }
