"""Previews from a cache: decode the clip again, take labels and boxes from the last build, draw."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pipeline.carry import nearest_segmented
from pipeline.clip import Clip
from pipeline.decode import DecodePool
from pipeline.errors import ClipError, UserError
from pipeline.manifest import Manifest
from pipeline.media import decode_job, index_folder
from pipeline.plan import ClipTask
from pipeline.preview import draw_preview, save_preview, shown_frames
from pipeline.regions import Boxes, dress
from pipeline.spec import RegionsSpec
from pipeline.stages.regions import carried
from pipeline.stages.work import Work
from pipeline.store.reader import Cache


def write_previews(cache_root: Path, dataset: str, names: Sequence[str], out: Path) -> dict[str, Path]:
    """Write the PNG of every clip; returns clip id -> file.

    A name is a clip id, or the path of a video in the clip table, which stands for all clips of it.

    Raises UserError for an unknown name, for a clip that has no regions yet or is quarantined, and for a build
    of skeletons.
    """
    cache = Cache(cache_root)
    manifest = cache.dataset(dataset)
    keys = cache.clip_keys(dataset)
    stages = cache.builds(dataset)["stages"]
    if not {"segment", "regions"} <= stages.keys():
        raise UserError(
            f"'{dataset}' was built without the stages segment and regions, which a preview shows; "
            "run `bmoe-cache build` with a preset of encoders"
        )
    segment, regions = cache.stage("segment", stages["segment"]), cache.stage("regions", stages["regions"])
    facts = {name: value for name, value in regions.facts.items() if name not in ("stage", "version")}
    spec = RegionsSpec(**facts)
    tasks = []
    for clip in _chosen(manifest, names):
        key = keys.get(clip.clip_id)
        if key not in segment.clips or key not in regions.clips:
            raise UserError(
                f"clip {clip.clip_id} has no regions in this cache: `bmoe-cache info --dataset {dataset}` says "
                "whether it is quarantined; otherwise run `bmoe-cache build`"
            )
        tasks.append(ClipTask(str(key), clip, 0))
    paths = {}
    with DecodePool(1, index=index_folder(cache_root)) as pool:
        jobs = [decode_job(task.clip, manifest.root, task.key) for task in tasks]
        for task, (_, frames) in zip(tasks, pool.decode(jobs), strict=True):
            if isinstance(frames, ClipError):
                raise frames
            labels, under = (segment.read(task.key, name) for name in ("labels", "under"))
            boxes = Boxes(*(regions.read(task.key, name) for name in ("box", "area", "present")))
            stride = int(segment.facts["stride"])
            shown = shown_frames(len(frames.array))
            nearest = nearest_segmented(shown, len(labels), stride)
            at, maps = carried(Work(task, labels=labels, under=under, boxes=boxes), spec, stride, shown)
            clip = task.clip
            title = clip.clip_id + (f"   {', '.join(clip.label_names)}" if clip.label_names else "")
            notes = f"{len(frames.array)} frames, {frames.decoder}"
            worn = dress(labels[nearest], under[nearest], spec.clothing)
            picture = draw_preview(title, frames.array, shown, worn, at, maps if spec.mask else None, notes)
            paths[clip.clip_id] = save_preview(picture, out, clip.clip_id)
    return paths


def _chosen(manifest: Manifest, names: Sequence[str]) -> list[Clip]:
    """The clips of these names, each once. Raises UserError for an unknown one, naming ids that are like it."""
    found: dict[str, Clip] = {}
    for name in names:
        clips = [clip for clip in manifest.clips if name in (clip.clip_id, clip.video_path)]
        if not clips:
            part = PurePosixPath(name.rsplit(":", 1)[-1]).stem
            near = [clip.clip_id for clip in manifest.clips if part and part in clip.clip_id][:3]
            some = near or [clip.clip_id for clip in manifest.clips[:3]]
            hint = f"{'near' if near else 'the first'}: {', '.join(some)}; `dataset export` lists all"
            raise UserError(f"dataset '{manifest.dataset}' has no clip and no video '{name}'; {hint}")
        found |= {clip.clip_id: clip for clip in clips}
    return list(found.values())
