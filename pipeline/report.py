"""What a cache holds, as data: for a dataset (`info`, `failures`, the demo's summary) and in all (`ls`)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.events import last_step
from pipeline.manifest import Manifest, manifest_path, read_manifest
from pipeline.media import Media, clip_keys, media_path, read_media
from pipeline.plan import StageContents, all_of, contents, count_clips, with_source
from pipeline.spec import STAGES
from pipeline.store.flight import in_flight
from pipeline.store.gc import reached
from pipeline.store.layout import (
    build_path,
    check_cache,
    events_path,
    load_build,
    load_folder,
    load_receipts,
    stage_folders,
)
from pipeline.store.reader import Cache
from pipeline.store.records import Receipt, load_quarantine
from pipeline.store.writer import Stage, open_stage


def describe(cache: Path, dataset: str) -> dict[str, Any]:
    """Account for every clip of a dataset under the stages of its last build, which read videos or skeletons.

    Returns {"dataset", "preset", "clips": {manifest, done, quarantined, pending}, "splits", "stages": {name: {key,
    clips, rows, shards, bytes, created, host, seconds, clips_per_s}}, "quarantine": [{clip_id, stage, code, message,
    decoder, attempts}], "codes": {code: clips}, "warnings", "in_flight": as the function, "progress": as
    `pipeline.events.last_step`}. A dataset that was never built has all clips pending.
    """
    check_cache(cache)
    manifest = read_manifest(manifest_path(cache, dataset))
    media = read_media(media_path(cache, dataset))
    record = load_build(cache, dataset) if build_path(cache, dataset).exists() else None
    videos = record.get("source") != "skeleton" if record else any(clip.video_path for clip in manifest.clips)
    source, own = ("video", STAGES) if videos else ("skeleton", ("skeleton",))
    manifest = with_source(manifest, source)
    rows = clip_keys(manifest, media, source)
    names = {key: clip_id for key, clip_id in zip(rows, manifest.column("clip_id"), strict=True) if key}
    stages: dict[str, Stage | None] = {}
    if record:
        keys_of = record["stages"]
        stages = {name: open_stage(cache, name, keys_of[name]) for name in own if name in keys_of}
    holds = {name: contents(stage) for name, stage in stages.items()}
    counts = count_clips(manifest, media, rows, all_of(holds), source)
    refused = _unusable(manifest, media, source)
    warned: dict[tuple[str, str], None] = {}  # a clip's warnings stand in every stage that decoded it
    report: dict[str, Any] = {}
    for name, stage in stages.items():
        if stage is None:
            continue
        refused = _refused(stage, holds[name], names) | refused
        receipts = stage.receipts()
        mine = [clip for receipt in receipts for clip in receipt.clips if clip.clip_key in names]
        for clip in mine:
            warned |= {(names[clip.clip_key], text): None for text in clip.facts.get("warnings", [])}
        report[name] = {
            "clips": len(mine),
            "rows": sum(clip.n_rows for clip in mine),
            **_on_disk(stage, receipts, (record or {}).get("rates", {}).get(name)),
        }
    return {
        "dataset": dataset,
        "preset": record["preset"] if record else None,
        "root": str(manifest.root),
        "clips": asdict(counts),
        "splits": dict(Counter(clip.split for clip in manifest.clips)),
        "stages": report,
        "quarantine": [{"clip_id": clip_id, **line} for clip_id, line in sorted(refused.items())],
        "codes": dict(sorted(Counter(line["code"] for line in refused.values()).items())),
        "warnings": [{"clip_id": clip_id, "text": text} for clip_id, text in warned],
        "in_flight": in_flight(cache, dataset),
        "progress": last_step(events_path(cache, dataset)),
    }


def _unusable(manifest: Manifest, media: Mapping[str, Media], source: str) -> dict[str, dict[str, Any]]:
    """Clip id -> why its file cannot be used."""
    return {
        clip.clip_id: {
            "stage": "files",
            "code": file.code,
            "message": file.error,
            "decoder": None,
            "attempts": 1,
        }
        for clip in manifest.clips
        if (file := media.get(clip.path(source) or "")) is not None and file.code is not None
    }


def _refused(stage: Stage, held: StageContents, names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Clip id -> why a stage refused it."""
    told = ("stage", "code", "message", "decoder", "attempts")
    return {
        names[entry.clip_key]: {name: getattr(entry, name) for name in told}
        for entry in stage.quarantine()
        if entry.clip_key in held.refused and entry.clip_key in names
    }


def _on_disk(stage: Stage, receipts: Sequence[Receipt], rate: Mapping[str, Any] | None) -> dict[str, Any]:
    """What lies in a stage's folder, of whatever dataset, and how fast the last build was with it."""
    return {
        "key": stage.key,
        "shards": len(receipts),
        "bytes": sum(file.bytes for receipt in receipts for file in receipt.files.values()),
        "created": stage.info.provenance.get("created"),
        "host": stage.info.provenance.get("host"),
        "seconds": rate["seconds"] if rate else None,
        "clips_per_s": round(rate["clips"] / rate["seconds"], 2) if rate and rate["seconds"] else None,
    }


def retry(cache: Path, dataset: str) -> int:
    """Take the clips of a dataset out of quarantine in every stage of its last build; returns how many.

    Files that could not be read are looked at by every plan anyway.
    """
    reader = Cache(cache)
    clip_keys = {
        key for source in ("video", "skeleton") for key in reader.clip_keys(dataset, source).values()
    }
    found = set()
    for name, key in load_build(cache, dataset)["stages"].items():
        stage = open_stage(cache, name, key)
        if stage is not None:
            mine = {entry.clip_key for entry in stage.quarantine()} & clip_keys
            stage.drop_quarantine(mine)
            found |= mine
    return len(found)


def list_stages(cache: Path) -> list[dict[str, Any]]:
    """Every stage of a cache: what it holds, and which builds reach it.

    Each is {"stage", "key", "path", "clips", "rows", "shards", "bytes", "quarantined", "created", "used_by"}.
    """
    check_cache(cache)
    users, lines = reached(cache), []
    for path in stage_folders(cache):
        folder, info = load_folder(path)
        receipts = load_receipts(folder, info)
        lines.append(
            {
                "stage": folder.stage,
                "key": info.key,
                "path": str(path),
                "clips": len({clip.clip_key for receipt in receipts for clip in receipt.clips}),
                "rows": sum(receipt.rows for receipt in receipts),
                "shards": len(receipts),
                "bytes": sum(file.bytes for receipt in receipts for file in receipt.files.values()),
                "quarantined": len(load_quarantine(folder.quarantine)),
                "created": info.provenance.get("created"),
                "used_by": users.get(info.key, []),
            }
        )
    return lines
