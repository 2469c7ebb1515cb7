"""VideoMAE-V2 features of 16-frame windows, one row per window, five views per row."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import nn

from pipeline.encoders.preprocess import normalisation, window_indices, window_starts
from pipeline.spec import VIEWS, RegionsSpec, SemanticSpec
from pipeline.stages.packing import Rows, packed
from pipeline.stages.regions import maps, nearest_segmented, spread
from pipeline.stages.work import Work, raw
from pipeline.store.layout import ArraySpec
from pipeline.views import full_view, region_view

CHUNK_ROWS = 64


def arrays(dim: int) -> list[ArraySpec]:
    """features: fc_norm of the token mean, zeros where a region is absent; present: 0 or 1 per view."""
    return [
        raw("features", "float16", len(VIEWS), dim, chunk_rows=CHUNK_ROWS),
        raw("present", "uint8", len(VIEWS), chunk_rows=CHUNK_ROWS),
    ]


def encode_windows(
    works: Iterable[Work],
    spec: SemanticSpec,
    regions: RegionsSpec,
    segment_stride: int,
    model: nn.Module,
    batch: int,
    device: torch.device,
    wanted: Callable[[Work], bool],
) -> Iterator[Work]:
    """Add the features of every wanted work that has frames and boxes; absent regions are never run."""
    size = int(model.input_shape[-1])  # type: ignore[index]
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in normalisation(spec.normalisation))
    plans: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # clip key -> (starts, present)

    def rows(work: Work) -> Rows:
        if work.frames is None or work.boxes is None or work.error or not wanted(work):
            return Rows(work, 0, lambda low, high: torch.empty(0))
        views, there = _views(work, regions, segment_stride, size, device)
        starts = window_starts(len(work.frames), spec.window, spec.stride)
        windows = np.stack([window_indices(int(start), spec.window, len(work.frames)) for start in starts])
        present = np.asarray(
            there[:, windows].any(2)
        ).T  # [W, 5]: a region counts when any frame of the window has it
        plans[work.task.key] = (starts, present)
        pairs = np.argwhere(present)

        def fetch(low: int, high: int) -> torch.Tensor:
            window, view = pairs[low:high].T
            chosen = views[torch.from_numpy(view)[:, None], torch.from_numpy(windows[window])]
            return ((chosen - mean) / std).transpose(1, 2)  # [n, 3, 16, size, size]

        return Rows(work, len(pairs), fetch)

    def forward(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": model(x)["features"].float()}

    for work, out in packed((rows(work) for work in works), batch, forward):
        if out:
            assert work.frames is not None
            starts, present = plans.pop(work.task.key)
            features = np.zeros((*present.shape, out["features"].shape[1]), np.float32)
            features[present] = out["features"]
            facts = {
                **work.facts,
                "start_frames": starts.tolist(),
                "repeated_frames": max(spec.window - len(work.frames), 0),
            }
            work.written["semantic"] = ({"features": features, "present": present.astype(np.uint8)}, facts)
        yield work


def _views(
    work: Work, regions: RegionsSpec, stride: int, size: int, device: torch.device
) -> tuple[torch.Tensor, np.ndarray]:
    """(float32 [5, F, 3, size, size] on the 0-255 scale, bool [5, F] where each view is present)."""
    assert work.frames is not None
    assert work.boxes is not None
    count = len(work.frames)
    index = nearest_segmented(count, stride)
    boxes = spread(work.boxes, index)
    frames = torch.from_numpy(work.frames).to(device)
    masks = torch.from_numpy(maps(work, regions)).to(device)[index] if regions.mask else None
    crops = [region_view(frames, masks, boxes, i, size) for i in range(len(VIEWS) - 1)]
    there = np.concatenate([np.ones((1, count), bool), boxes.present.T.astype(bool)])
    return torch.stack([full_view(frames, size), *crops]), there
