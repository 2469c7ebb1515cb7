"""Previews from a cache: decode the clip again, take labels and boxes from the last build, draw."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.carry import nearest_segmented
from pipeline.decode import DecodePool
from pipeline.errors import ClipError, UserError
from pipeline.media import decode_job, index_folder
from pipeline.plan import ClipTask
from pipeline.preview import draw_preview, save_preview, shown_frames
from pipeline.regions import Boxes, dress
from pipeline.spec import RegionsSpec
from pipeline.stages.regions import carried
from pipeline.stages.work import Work
from pipeline.store.reader import Cache


def write_previews(cache_root: Path, dataset: str, clip_ids: Sequence[str], out: Path) -> dict[str, Path]:
    """Write the PNG of every clip; returns clip id -> file.

    Raises UserError for an unknown clip id, for a clip that has no regions yet or is quarantined, and for a build
    of skeletons.
    """
    cache = Cache(cache_root)
    manifest = cache.dataset(dataset)
    by_id = {clip.clip_id: clip for clip in manifest.clips}
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
    for clip_id in clip_ids:
        if clip_id not in by_id:
            near = [known for known in by_id if known.endswith(clip_id.rsplit(":", 1)[-1])][:3]
            hint = f"; did you mean {' or '.join(near)}?" if near else "; `bmoe-cache info` counts them"
            raise UserError(f"dataset '{dataset}' has no clip '{clip_id}'{hint}")
        key = keys.get(clip_id)
        if key not in segment.clips or key not in regions.clips:
            raise UserError(
                f"clip {clip_id} has no regions in this cache: `bmoe-cache info --dataset {dataset}` says whether it "
                "is quarantined; otherwise run `bmoe-cache build`"
            )
        tasks.append(ClipTask(str(key), by_id[clip_id], 0))
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
