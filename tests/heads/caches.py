"""A small real cache with known features, written through the store."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ClipError
from pipeline.manifest import Clip, Manifest, clip_key, manifest_path, write_manifest
from pipeline.media import Media, write_media
from pipeline.spec import VIEWS, digest
from pipeline.store.layout import ArraySpec, init_cache
from pipeline.store.records import QuarantineEntry
from pipeline.store.writer import ShardBuilder, create_stage, write_build
from pipeline.taxonomy import load_taxonomy

DIM, MOTION_DIM, CLASSES = 32, 24, 12


def sha(clip_id: str) -> str:
    return digest(clip_id)


def windows_of(number: int) -> np.ndarray:
    """Start frames of clip `number`: 1 to 9 windows of stride 4, the last one moved to the clip's end."""
    starts = np.arange(number % 9 + 1) * 4
    if len(starts) > 2:
        starts[-1] -= 2
    return starts


def features_of(number: int) -> tuple[np.ndarray, np.ndarray]:
    """float16 [windows, 5, DIM] and uint8 [windows, 5]: a label's direction in one view; absent windows."""
    rng = np.random.default_rng(number)
    count = len(windows_of(number))
    present = np.ones((count, 5), np.uint8)
    present[:, 1:] = rng.random((count, 4)) > 0.2
    x = rng.normal(size=(count, 5, DIM)) * 0.3
    x[:, 1 + number % 4] += np.random.default_rng(number % CLASSES).normal(size=DIM)
    return (x * present[..., None]).astype(np.float16), present


def motion_of(number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1000 + number)
    return rng.normal(size=(8, MOTION_DIM)).astype(np.float16), rng.normal(size=CLASSES).astype(np.float32)


def make_cache(root: Path, train: int = 24, val: int = 12, *, motion: bool = True) -> Path:
    """Clips c0000... with label i % 12. On top of the usable ones, split train holds five that are not:
    unlabelled (though it has features), two labels, no file, quarantined by segment, pending.
    """
    taxonomy = load_taxonomy("demo")
    assert taxonomy is not None
    init_cache(root)
    base: dict[str, Any] = {"dataset": "demo", "label_space": "demo12", "label_kind": "single"}
    clips = [
        Clip(
            f"c{i:04d}",
            video_path=f"c{i:04d}.mp4",
            label_ids=(i % CLASSES,),
            split="train" if i < train else "val",
            **base,
        )
        for i in range(train + val)
    ]
    odd = {
        n: replace(clips[0], clip_id=n, video_path=f"{n}.mp4")
        for n in ("lost", "nolabel", "pending", "quar", "two")
    }
    odd["nolabel"] = replace(odd["nolabel"], label_ids=None)
    odd["two"] = replace(odd["two"], label_ids=(0, 1))
    every = tuple(sorted([*clips, *odd.values()], key=lambda c: c.clip_id))
    path = manifest_path(root, "demo")
    write_manifest(Manifest("demo", root, taxonomy, every), path)
    media = {
        c.media_path: Media(c.media_path, 1, 1, sha256=None if c.clip_id == "lost" else sha(c.clip_id))
        for c in every
    }
    write_media(path.with_suffix(".media.parquet"), media)

    segment = {"stage": "segment", "version": 1}
    semantic = {"stage": "semantic", "version": 1, "views": list(VIEWS)}
    arrays = [
        ArraySpec("features", "float16", (5, DIM), 16, "raw"),
        ArraySpec("present", "uint8", (5,), 16, "raw"),
    ]
    keys = {"segment": digest(segment), "semantic": digest(semantic)}
    labels = [ArraySpec("labels", "uint8", (2, 2), 1, "zstd")]
    error = ClipError("E_DECODE", "no frame could be decoded")
    quarantined = clip_key(odd["quar"], sha("quar"))
    create_stage(root, segment, keys["segment"], labels, 16, {}).add_quarantine(
        QuarantineEntry.of(quarantined, "quar", "segment", error)
    )
    stage = create_stage(root, semantic, keys["semantic"], arrays, 64, {})
    builder = ShardBuilder(stage, 0)
    for i, clip in enumerate([*clips, odd["nolabel"]]):
        x, present = features_of(i)
        if not builder.room_for(len(x)):
            builder.commit()
            builder = ShardBuilder(stage, stage.next_shard)
        facts = {"start_frames": windows_of(i).tolist()}
        builder.add(
            clip_key(clip, sha(clip.clip_id)), clip.clip_id, {"features": x, "present": present}, facts
        )
    builder.commit()
    if motion:
        spec = {"stage": "motion", "version": 1}
        keys["motion"] = digest(spec)
        arrays = [
            ArraySpec("features", "float16", (8, MOTION_DIM), 16, "raw"),
            ArraySpec("logits", "float32", (CLASSES,), 16, "raw"),
        ]
        stage = create_stage(root, spec, keys["motion"], arrays, 64, {})
        builder = ShardBuilder(stage, 0)
        for i, clip in enumerate([*clips, odd["nolabel"]]):
            x, logits = motion_of(i)
            builder.add(
                clip_key(clip, sha(clip.clip_id)),
                clip.clip_id,
                {"features": x[None], "logits": logits[None]},
                {},
            )
        builder.commit()
    write_build(root, "demo", {"preset": "tiny", "stages": keys})
    return root
