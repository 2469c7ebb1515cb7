"""The engine: models loaded once, clips streamed through the stages they lack, one decode pass per clip."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.decode import DecodeJob, DecodePool, Frames
from pipeline.decode.spans import SpanFrames
from pipeline.encoders.checkpoints import open_encoder
from pipeline.encoders.contract import Segmenter, WindowEncoder
from pipeline.encoders.manet import MANet
from pipeline.encoders.preprocess import manet_indices
from pipeline.errors import ClipError, UserError
from pipeline.events import Event, Listener, silent
from pipeline.media import decode_job, index_folder
from pipeline.plan import Group
from pipeline.presets import Recipe
from pipeline.regions import Boxes
from pipeline.run.compiled import compile_encoder, prepare_compiler
from pipeline.sizes import MEMORY
from pipeline.stages import motion, regions, segment, semantic
from pipeline.stages.tokens import Projection, load_projection
from pipeline.stages.work import Work
from pipeline.store.layout import ArraySpec
from pipeline.store.reader import Cache, StageReader

NEEDS_FRAMES = ("segment", "semantic", "motion")
# Input of one call on a CPU, at most. MANet takes 0.48 s for a clip (4.8 MB) alone and 0.83 in a batch of 8,
# VideoMAE-V2 base 1.5 s for a window (9.6 MB) alone and 1.65 in a batch of 8; the demo's (0.8 MB) 3.0 ms alone and
# 1.3 in a batch of 16.
CPU_BYTES = 8 << 20


def pick_device() -> torch.device:
    """The GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Engine(AbstractContextManager["Engine"]):
    """Everything `stream` needs: the encoders of the stages to compute and the decode workers.

    Attributes:
        seconds: own time of every layer so far, of the group under way too; waiting for an upstream layer is not
            counted, nor what happened in its shadow: "decode" is the time that frames were waited for. "compile" is
            that of first calls, where encoders are compiled.
        frames: decoded so far.
        differences: by stage, the tensors that its weights file and model do not share, and why.
    """

    def __init__(
        self,
        cache: Path,
        root: Path,
        recipe: Recipe,
        stages: Iterable[str],
        workers: int = 2,
        listen: Listener = silent,
        memory: int = MEMORY,
    ) -> None:
        self.cache, self.root, self.recipe, self.listen = cache, root, recipe, listen
        self.stages = tuple(stages)
        self.device = pick_device()
        self.overlap = self.device.type == "cuda"  # on a CPU every core computes already
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32; bfloat16 is an option
        if recipe.run.compile:
            prepare_compiler(cache, self.device)
        self._seconds: dict[str, float] = dict.fromkeys(("decode", *recipe.spec.stages(), "compile"), 0.0)
        self._spent: dict[str, float] = {}  # of the group under way, by layer, everything upstream included
        self.frames = 0
        self._cold: dict[str, float] = {}  # stage -> seconds of its first, compiling call
        self.differences: dict[str, list[str]] = {}
        self.models = {name: self._encoder(name) for name in NEEDS_FRAMES if name in self.stages}
        self.projection: Projection | None = None
        if "semantic" in self.models:
            self.projection = load_projection(
                recipe.spec.semantic, self.models["semantic"], recipe.projection, self.device
            )
        self.pool = DecodePool(workers, memory=memory // 2, index=index_folder(cache))
        self._readers: dict[str, StageReader] = {}

    def __exit__(self, *_: object) -> None:
        self.pool.close()

    def _encoder(self, stage: str) -> Any:
        spec: Any = self.recipe.spec.stages()[stage]
        model, differences = open_encoder(spec.model, spec.config, self.recipe.weights[stage])
        # Families of other packages do not say which stage they are for, so the model has to.
        contract = {"segment": Segmenter, "semantic": WindowEncoder, "motion": MANet}[stage]
        if not isinstance(model, contract):
            raise UserError(
                f"{stage}.weights: a {spec.model} is no {contract.__name__}; use weights of one, or give its "
                "class what pipeline/encoders/contract.py asks for"
            )
        self.differences[stage] = [str(difference) for difference in differences]
        for text in self.differences[stage]:
            self.listen(Event("note", stage, text=f"weights of {spec.model}: {text}"))
        model = model.to(self.device)
        if self.recipe.run.compile and any(True for _ in model.parameters()):

            def on_cold(seconds: float) -> None:
                self._cold[stage] = seconds
                text = f"{spec.model} compiled in {seconds:.1f} s, its first batch included"
                self.listen(Event("note", stage, text=text))

            compile_encoder(model, on_cold)
        return model

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
        spec = self.recipe.spec
        self._readers = {}
        spent = {layer: 0.0 for layer in self._seconds if layer == "decode" or layer in group.missing}
        self._seconds, self._spent = self.seconds, spent

        def lacks(stage: str) -> Callable[[Work], bool]:
            keys = group.missing.get(stage, frozenset())
            return lambda work: work.task.key in keys

        works = self._begin(group)
        if self.overlap:
            works = _ahead(works, self._uploader(group))
        works = _metered(works, "decode", spent)
        if "segment" in group.missing:
            layer = segment.segment(
                works,
                spec.segment,
                self.models["segment"],
                self.batch("segment"),
                self.device,
                lacks("segment"),
            )
            if self.overlap:  # boxes are found and labels compressed while the next clip is segmented
                layer = _ahead(layer, lambda _: None)
            works = _metered(layer, "segment", spent)
        if "regions" in group.missing:
            works = _metered(regions.find_regions(works, spec.regions), "regions", spent)
        if "semantic" in group.missing:
            layer = semantic.encode_windows(
                works, spec.semantic, spec.regions, spec.segment.stride, self.models["semantic"], self.projection,
                self.batch("semantic"), self.device, lacks("semantic"),
            )  # fmt: skip
            works = _metered(layer, "semantic", spent)
        if "motion" in group.missing:
            layer = motion.encode_motion(
                works, spec.motion, self.models["motion"], self.batch("motion"), self.device, lacks("motion")
            )
            works = _metered(layer, "motion", spent)
        try:
            for work in works:
                work.drop_frames()  # no stage needs them any more
                if work.error and work.error[0] == "decode":
                    work.written.clear()
                yield work
        except torch.OutOfMemoryError as error:  # batches shrink by themselves; the frames of a clip do not
            raise UserError(
                f"{self.device} lacks the memory for whole clips ({str(error).partition('.')[0]}); free it from other "
                "programs, or lower run.batch"
            ) from None
        self._seconds, self._spent = self.seconds, {}
        self._cold.clear()

    def batch(self, stage: str) -> int:
        """Rows of a call: those of the recipe, on a CPU no more than its caches hold."""
        rows: int = getattr(self.recipe.run.batch, stage)
        if self.device.type != "cpu":
            return rows
        model = self.models[stage]
        if stage == "segment":
            numbers = 3 * math.prod(model.image_size or (1, 1))
        elif stage == "semantic":
            numbers = math.prod(model.input_shape)
        else:
            numbers = 3 * model.segments * self.recipe.spec.motion.crop**2
        return min(rows, max(CPU_BYTES // (4 * numbers), 1))

    @property
    def seconds(self) -> dict[str, float]:
        seconds, below = dict(self._seconds), 0.0
        for layer, total in self._spent.items():  # upstream first: each total contains those before it
            cold = self._cold.get(layer, 0.0)
            seconds[layer] += total - below - cold
            seconds["compile"] += cold
            below = total
        return seconds

    def _uploader(self, group: Group) -> Callable[[Work], None]:
        """What takes a clip's frames to the GPU ahead of time; MANet alone sees so few that it fetches its own."""
        if self.device.type != "cuda" or {"segment", "semantic"}.isdisjoint(group.missing):
            return lambda _: None
        stream = torch.cuda.Stream(self.device)
        return lambda work: work.upload(self.device, stream)

    def _begin(self, group: Group) -> Iterator[Work]:
        """Works with frames where a missing stage needs them, and labels and boxes the cache already holds."""
        keys = _lacking(group, NEEDS_FRAMES)
        decoded = self.pool.decode(self._jobs(group, keys))
        for task in group.clips:
            work = Work(task, ends_block=task.key in group.ends)
            if task.key in keys:
                _, frames = next(decoded)
                _take(work, frames)
                self.frames += work.facts.get("frames", 0)
            if not work.error:
                self._load(work, group.missing)
            yield work

    def _jobs(self, group: Group, keys: frozenset[str]) -> Iterator[DecodeJob]:
        pictures = _lacking(group, ("segment", "semantic"))
        for task in group.clips:
            if task.key in keys:
                job = decode_job(task.clip, self.root, task.key)
                few = task.key not in pictures
                yield replace(job, only=manet_indices, frames=max(task.frames, 1)) if few else job

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
            work.labels, work.under = _Stored(reader, key, "labels"), _Stored(reader, key, "under")
            if not isinstance(work.frames, SpanFrames):
                work.labels, work.under = work.labels[:], work.under[:]
            kept = {"frames", "fps", "decoder", "warnings", "crop"}
            work.facts = work.facts or {k: v for k, v in reader.clips[key].facts.items() if k in kept}
        if crops and key not in missing.get("regions", ()):
            boxes = self._reader("regions")
            work.boxes = Boxes(boxes.read(key, "box"), boxes.read(key, "area"), boxes.read(key, "present"))

    def _reader(self, stage: str) -> StageReader:
        if stage not in self._readers:
            key = self.recipe.spec.stages()[stage].key
            self._readers[stage] = Cache(self.cache, check=True).stage(stage, key)
        return self._readers[stage]


class _Stored:
    """An array of a clip in the cache, read where it is sliced."""

    def __init__(self, reader: StageReader, key: str, array: str) -> None:
        self._reader, self._key, self._array = reader, key, array
        self.shape = (reader.clips[key].n_rows, *reader.arrays[array].row_shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._reader.read(self._key, self._array, rows)


def _lacking(group: Group, stages: Iterable[str]) -> frozenset[str]:
    """The keys of the clips that any of these stages lacks."""
    return frozenset[str]().union(*(group.missing.get(stage, frozenset()) for stage in stages))


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
    if frames.crop:
        work.facts["crop"] = list(frames.crop)


def _ahead(works: Iterator[Work], step: Callable[[Work], None]) -> Iterator[Work]:
    """Pass works on, drawing the next one and taking a step with it in a thread meanwhile."""

    def draw() -> Work | None:
        work = next(works, None)
        if work is not None:
            step(work)
        return work

    with ThreadPoolExecutor(1, "ahead") as thread:
        coming = thread.submit(draw)
        while (work := coming.result()) is not None:
            coming = thread.submit(draw)
            yield work


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
