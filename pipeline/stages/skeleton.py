"""The joints of skeleton files as they are: no encoder, no video, one row a joint."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path

from pipeline.clip import resolve
from pipeline.errors import ClipError
from pipeline.plan import ClipTask, Group
from pipeline.skeletons import Skeletons, read_skeletons
from pipeline.stages.work import Work, raw
from pipeline.store.layout import ArraySpec

CHUNK_ROWS = 4096


def arrays() -> list[ArraySpec]:
    """xyz and confidence: frame by frame, in it person by person, in it joint by joint.

    The shape [frames, persons, joints] of a clip stands in its receipt, so `read(key, "xyz").reshape(*shape, 3)`
    is its array: persons and joints are as many as the clip has, and no number is made up.
    """
    return [
        raw("xyz", "float32", 3, chunk_rows=CHUNK_ROWS),
        raw("confidence", "float32", chunk_rows=CHUNK_ROWS),
    ]


class SkeletonEngine(AbstractContextManager["SkeletonEngine"]):
    """What `Engine` is to encoders, for the one stage that reads skeleton files. No torch, no decode worker."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seconds = {"skeleton": 0.0}
        self.frames = 0  # of videos
        self.differences: dict[str, list[str]] = {}
        self._read = lru_cache(maxsize=2)(read_skeletons)  # clips of a long recording follow each other

    def __exit__(self, *_: object) -> None:
        self._read.cache_clear()

    def arrays(self, stage: str) -> list[ArraySpec]:
        return arrays()

    def stream(self, group: Group) -> Iterator[Work]:
        """The clips of a group, in its order."""
        for task in group.clips:
            begin = time.perf_counter()
            work = Work(task)
            try:
                found = self._clip(task)
            except ClipError as error:
                work.error = ("skeleton", error)
            else:
                shape = found.confidence.shape
                facts = {
                    "shape": list(shape),
                    "bodies": list(found.bodies),
                    "format": task.clip.skeleton_format,
                }
                rows = {"xyz": found.xyz.reshape(-1, 3), "confidence": found.confidence.reshape(-1)}
                work.written["skeleton"] = (rows, {**facts, "frames": shape[0]})
            self.seconds["skeleton"] += time.perf_counter() - begin
            yield work

    def _clip(self, task: ClipTask) -> Skeletons:
        clip = task.clip
        whole = self._read(resolve(self.root, clip.skeleton_path or ""), clip.skeleton_format)
        return whole.part(clip.start_frame or 0, clip.end_frame, clip.person_id)
