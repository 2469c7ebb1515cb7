"""What a cache holds for a dataset, as data for `info` and the demo's summary."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.manifest import manifest_path, read_manifest
from pipeline.media import read_media
from pipeline.plan import clip_tasks, contents, count_clips
from pipeline.spec import STAGES
from pipeline.store.layout import build_path, check_cache, load_build
from pipeline.store.writer import Stage, open_stage


def describe(cache: Path, dataset: str) -> dict[str, Any]:
    """Account for every clip of a dataset under the stages of its last build.

    Returns {"dataset", "preset", "clips": {manifest, done, quarantined, pending}, "splits", "stages": {name: {key,
    clips, shards, bytes, seconds, clips_per_s}}, "quarantine": [{clip_id, stage, code, message}], "warnings"}.
    A dataset that was never built has all clips pending.
    """
    check_cache(cache)
    manifest = read_manifest(manifest_path(cache, dataset))
    media = read_media(manifest_path(cache, dataset).with_suffix(".media.parquet"))
    record = load_build(cache, dataset) if build_path(cache, dataset).exists() else None
    tasks = clip_tasks(manifest, media)
    keys = {task.key for task in tasks.values()}
    names = {task.key: clip_id for clip_id, task in tasks.items()}
    stages: dict[str, Stage | None] = {}
    if record:
        stages = {name: open_stage(cache, name, record["stages"][name]) for name in STAGES}
    holds = {name: contents(stage) for name, stage in stages.items()}
    counts = count_clips(manifest, media, tasks, holds)
    refused: dict[str, dict[str, Any]] = {
        clip.clip_id: {"stage": "files", "code": file.code, "message": file.error}
        for clip in manifest.clips
        if (file := media.get(clip.media_path)) is not None and file.code is not None
    }
    warned: list[dict[str, Any]] = []
    report: dict[str, Any] = {}
    for name, stage in stages.items():
        if stage is None:
            continue
        for entry in stage.quarantine():
            if entry.clip_key in holds[name].quarantined and entry.clip_key in names:
                line = {"stage": entry.stage, "code": entry.code, "message": entry.message}
                refused.setdefault(names[entry.clip_key], line)
        receipts = stage.receipts()
        if name == "motion":
            for clip in (c for receipt in receipts for c in receipt.clips if c.clip_key in keys):
                warned += [
                    {"clip_id": names[clip.clip_key], "text": text} for text in clip.facts.get("warnings", [])
                ]
        rate = (record or {}).get("rates", {}).get(name)
        report[name] = {
            "key": stage.key,
            "clips": sum(c.clip_key in keys for receipt in receipts for c in receipt.clips),
            "shards": len(receipts),
            "bytes": sum(file.bytes for receipt in receipts for file in receipt.files.values()),
            "seconds": rate["seconds"] if rate else None,
            "clips_per_s": round(rate["clips"] / rate["seconds"], 2) if rate and rate["seconds"] else None,
        }
    return {
        "dataset": dataset,
        "preset": record["preset"] if record else None,
        "root": str(manifest.root),
        "clips": asdict(counts),
        "splits": dict(Counter(clip.split for clip in manifest.clips)),
        "stages": report,
        "quarantine": [{"clip_id": clip_id, **line} for clip_id, line in sorted(refused.items())],
        "warnings": warned,
    }
