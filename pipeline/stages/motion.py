"""MANet features of 8 frames spread over the clip; one row per clip.

What is cached here (segment features, class logits, word-vector embedding) is MANet's own, so the stage takes a
MANet; a second motion encoder would bring a stage of its own.
"""

from collections.abc import Callable, Iterable, Iterator

import torch

from pipeline.encoders.manet import MANet
from pipeline.encoders.preprocess import manet_indices, manet_input
from pipeline.spec import MotionSpec
from pipeline.stages.packing import Rows, packed
from pipeline.stages.work import Work, raw
from pipeline.store.layout import ArraySpec


def arrays(model: MANet) -> list[ArraySpec]:
    """features: spatially pooled, one per segment; logits and embedding: means over the segments."""
    head = model.cls_head
    return [
        raw("features", "float16", model.segments, head.fc_cls.in_features, chunk_rows=1),
        raw("logits", "float32", head.fc_cls.out_features, chunk_rows=1),
        raw("embedding", "float32", head.fc_emb_t.out_features, chunk_rows=1),
    ]


def encode_motion(
    works: Iterable[Work],
    spec: MotionSpec,
    model: MANet,
    batch: int,
    device: torch.device,
    wanted: Callable[[Work], bool],
) -> Iterator[Work]:
    """Add MANet's three outputs to every wanted work that has frames, and let go of the frames."""
    chosen: dict[str, list[int]] = {}  # clip key -> frames it is seen by

    def rows(work: Work) -> Rows:
        if work.frames is None or work.error or not wanted(work):
            return Rows(work, 0, lambda low, high: torch.empty(0))
        indices = manet_indices(len(work.frames))
        picked = work.frames_on(device, indices)
        chosen[work.task.key] = indices.tolist()
        work.drop_frames()  # the last stage that reads them: a batch waits for 8 clips, 300 MB each at 1080 x 1296
        return Rows(work, 1, lambda low, high: manet_input(picked, spec.short_side, spec.crop)[None])

    def forward(x: torch.Tensor) -> dict[str, torch.Tensor]:
        out = model(x)
        return {
            "features": out["segment_features"],
            "logits": out["logits"],
            "embedding": out["embedding"],
        }

    for work, out in packed((rows(work) for work in works), batch, forward, spec.precision, device):
        if out:
            indices = chosen.pop(work.task.key)
            work.written["motion"] = (out, {**work.facts, "segment_frames": indices})
        yield work
