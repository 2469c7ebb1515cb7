"""MANet features of 8 frames spread over the clip; one row per clip."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from pipeline.encoders.preprocess import manet_indices, manet_input
from pipeline.spec import MotionSpec
from pipeline.stages.packing import Rows, packed
from pipeline.stages.work import Work, raw
from pipeline.store.layout import ArraySpec


def arrays(model: nn.Module) -> list[ArraySpec]:
    """features: spatially pooled, one per segment; logits and embedding: means over the segments."""
    head = model.cls_head
    return [
        raw("features", "float16", 8, head.fc_cls.in_features, chunk_rows=1),  # type: ignore[union-attr, arg-type]
        raw("logits", "float32", head.fc_cls.out_features, chunk_rows=1),  # type: ignore[union-attr, arg-type]
        raw("embedding", "float32", head.fc_emb_t.out_features, chunk_rows=1),  # type: ignore[union-attr, arg-type]
    ]


def encode_motion(
    works: Iterable[Work],
    spec: MotionSpec,
    model: nn.Module,
    batch: int,
    device: torch.device,
    wanted: Callable[[Work], bool],
) -> Iterator[Work]:
    """Add MANet's three outputs to every wanted work that has frames."""

    def rows(work: Work) -> Rows:
        if work.frames is None or work.error or not wanted(work):
            return Rows(work, 0, lambda low, high: torch.empty(0))
        picked = work.frames[manet_indices(len(work.frames))]
        return Rows(work, 1, lambda low, high: manet_input(picked, spec.short_side, spec.crop)[None])

    def forward(x: torch.Tensor) -> dict[str, torch.Tensor]:
        out = model(x.to(device))
        return {
            "features": out["segment_features"],
            "logits": out["logits"],
            "embedding": out["embedding"],
        }

    for work, out in packed((rows(work) for work in works), batch, forward):
        if out:
            assert work.frames is not None
            indices = manet_indices(len(work.frames)).tolist()
            work.written["motion"] = (out, {**work.facts, "segment_frames": indices})
        yield work
