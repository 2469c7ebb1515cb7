"""The engine: models loaded once, clips streamed through the stages they lack, one decode pass per clip."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from pipeline.decode import DecodeJob, DecodePool, Frames
from pipeline.encoders.checkpoints import load_encoder
from pipeline.errors import ClipError
from pipeline.manifest import resolve
from pipeline.plan import ClipTask, Group
from pipeline.presets import Recipe
from pipeline.regions import Boxes
from pipeline.stages import motion, regions, segment, semantic
from pipeline.stages.tokens import Projection, load_projection
from pipeline.stages.work import Work
from pipeline.store.layout import ArraySpec
from pipeline.store.reader import Cache, StageReader

NEEDS_FRAMES = ("segment", "semantic", "motion")


def pick_device() -> torch.device:
    """The GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Engine(AbstractContextManager["Engine"]):
    """Everything `stream` needs: the encoders of the stages to compute and the decode workers.

    Attributes:
        seconds: own time of every layer so far, "decode" included; waiting for an upstream layer not counted.
    """

    def __init__(
        self, cache: Path, root: Path, recipe: Recipe, stages: Iterable[str], workers: int = 2
    ) -> None:
        self.cache, self.root, self.recipe = cache, root, recipe
        self.stages = tuple(stages)
        self.device = pick_device()
        specs = recipe.spec.stages()
        self.models: dict[str, Any] = {
            name: load_encoder(specs[name].model, specs[name].config, recipe.weights[name]).to(self.device)  # type: ignore[attr-defined]
            for name in NEEDS_FRAMES
            if name in self.stages
        }
        self.projection: Projection | None = None
        if "semantic" in self.models:
            self.projection = load_projection(
                recipe.spec.semantic, self.models["semantic"], recipe.projection, self.device
            )
        self.pool = DecodePool(workers)
        self.seconds: dict[str, float] = dict.fromkeys(("decode", *specs), 0.0)
        self._readers: dict[str, StageReader] = {}

    def __exit__(self, *_: object) -> None:
        self.pool.close()

    def arrays(self, stage: str) -> list[ArraySpec]:
        """The arrays a stage writes with this recipe."""
        spec = self.recipe.spec
        if stage == "segment":
            return segment.arrays(spec.segment)
        if stage == "regions":
            return regions.arrays()
        if stage == "semantic":
            return semantic.arrays(spec.semantic, self.models["semantic"])
        return motion.arrays(self.models["motion"])

    def stream(self, group: Group) -> Iterator[Work]:
        """Compute what the clips of a group lack; works come out in the order of the group."""
        spec, batch = self.recipe.spec, self.recipe.run.batch
        self._readers = {}
        spent = {layer: 0.0 for layer in self.seconds if layer == "decode" or layer in group.missing}

        def lacks(stage: str) -> Callable[[Work], bool]:
            keys = group.missing.get(stage, frozenset())
            return lambda work: work.task.key in keys

        works = _metered(self._begin(group), "decode", spent)
        if "segment" in group.missing:
            layer = segment.segment(
                works, spec.segment, self.models["segment"], batch.segment, self.device, lacks("segment")
            )
            works = _metered(layer, "segment", spent)
        if "regions" in group.missing:
            works = _metered(regions.find_regions(works, spec.regions), "regions", spent)
        if "semantic" in group.missing:
            layer = semantic.encode_windows(
                works, spec.semantic, spec.regions, spec.segment.stride, self.models["semantic"], self.projection,
                batch.semantic, self.device, lacks("semantic"),
            )  # fmt: skip
            works = _metered(layer, "semantic", spent)
        if "motion" in group.missing:
            layer = motion.encode_motion(
                works, spec.motion, self.models["motion"], batch.motion, self.device, lacks("motion")
            )
            works = _metered(layer, "motion", spent)
        yield from works
        below = 0.0
        for layer_name, total in spent.items():  # upstream first: each total contains those before it
            self.seconds[layer_name] += total - below
            below = total

    def _begin(self, group: Group) -> Iterator[Work]:
        """Works with frames where a missing stage needs them, and labels and boxes the cache already holds."""
        keys = frozenset[str]().union(*(group.missing.get(stage, frozenset()) for stage in NEEDS_FRAMES))
        decoded = self.pool.decode(self._jobs(group, keys))
        for task in group.clips:
            work = Work(task)
            if task.key in keys:
                _, frames = next(decoded)
                _take(work, frames)
            if not work.error:
                self._load(work, group.missing)
            yield work

    def _jobs(self, group: Group, keys: frozenset[str]) -> Iterator[DecodeJob]:
        for task in group.clips:
            if task.key in keys:
                yield decode_job(task, self.root)

    def _load(self, work: Work, missing: Mapping[str, frozenset[str]]) -> None:
        """Read from the cache what later stages need and this run does not compute."""
        key = work.task.key
        crops = key in missing.get("semantic", ()) and self.recipe.spec.semantic.needs_regions
        needs_labels = crops or key in missing.get("regions", ())
        if needs_labels and key not in missing.get("segment", ()):
            reader = self._reader("segment")
            if key not in reader.clips:
                work.error = ("segment", ClipError("E_NO_LABELS", "the clip has no part labels"))
                return
            work.labels, work.under = reader.read(key, "labels"), reader.read(key, "under")
            kept = {"frames", "fps", "decoder", "warnings"}
            work.facts = work.facts or {k: v for k, v in reader.clips[key].facts.items() if k in kept}
        if crops and key not in missing.get("regions", ()):
            boxes = self._reader("regions")
            work.boxes = Boxes(boxes.read(key, "box"), boxes.read(key, "area"), boxes.read(key, "present"))

    def _reader(self, stage: str) -> StageReader:
        if stage not in self._readers:
            key = self.recipe.spec.stages()[stage].key
            self._readers[stage] = Cache(self.cache).stage(stage, key)
        return self._readers[stage]


def decode_job(task: ClipTask, root: Path) -> DecodeJob:
    """What the decode workers need to know of a clip."""
    clip = task.clip
    path = resolve(root, clip.media_path)
    return DecodeJob(task.key, path, clip.stream_index, clip.start_frame, clip.end_frame)


def _take(work: Work, frames: Frames | ClipError) -> None:
    if isinstance(frames, ClipError):
        work.error = ("decode", frames)
        return
    work.frames = frames.array
    fps = [frames.fps_num, frames.fps_den] if frames.fps_num else None
    work.facts = {
        "frames": len(frames.array),
        "fps": fps,
        "decoder": frames.decoder,
        "warnings": list(frames.warnings),
    }


def _metered(works: Iterable[Work], layer: str, spent: dict[str, float]) -> Iterator[Work]:
    """Pass works on and note the time they took, everything upstream included."""
    source = iter(works)
    while True:
        begin = time.perf_counter()
        try:
            work = next(source)
        except StopIteration:
            return
        finally:
            spent[layer] += time.perf_counter() - begin
        yield work
