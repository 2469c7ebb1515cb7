"""Features of 16-frame windows, one row per window, five views per row; token maps on request."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch

from pipeline.carry import carry_boxes
from pipeline.encoders.contract import WindowEncoder
from pipeline.encoders.preprocess import normalisation, window_indices, window_starts
from pipeline.errors import UserError
from pipeline.spec import REGIONS, RegionsSpec, SemanticSpec
from pipeline.stages.packing import Rows, packed
from pipeline.stages.regions import carried
from pipeline.stages.tokens import Projection, token_map
from pipeline.stages.work import Work, raw
from pipeline.store.layout import ArraySpec
from pipeline.views import full_view, region_view

CHUNK_ROWS = 64


def arrays(spec: SemanticSpec, model: WindowEncoder) -> list[ArraySpec]:
    """features and, on request, tokens: zeros where a region is absent; present: 0 or 1 per view.

    Token maps are raw like features, for a head to read through a map: zstd saves little of float16 noise.
    """
    views = len(spec.views)
    made = [
        raw("features", "float16", views, model.feature_dim, chunk_rows=CHUNK_ROWS),
        raw("present", "uint8", views, chunk_rows=CHUNK_ROWS),
    ]
    if spec.tokens is not None:
        width = spec.tokens["width"] or model.feature_dim
        shape = (len(spec.tokens["views"]), model.token_shape[0], *spec.tokens["grid"], width)
        made.append(raw("tokens", "float16", *shape, chunk_rows=1))
    return made


def sample_windows(frames: int, spec: SemanticSpec) -> tuple[np.ndarray, np.ndarray]:
    """Which frames the windows of a clip see: (start frames int64 [W], all frames int64 [W, window]).

    W is spec.window_count(frames). With a stride windows start at 0, stride, 2 * stride, ... while a whole one
    fits; with a number of windows they start evenly spread from the first frame to the last that leaves a whole
    one, rounded. Both take consecutive frames, and a clip shorter than a window repeats its last frame.
    Uniform sampling takes one window, the middle frames of `window` equal parts of the clip, as MANet does.
    """
    if spec.sampling == "uniform":
        middles = (2 * np.arange(spec.window, dtype=np.int64) + 1) * frames // (2 * spec.window)
        return np.zeros(1, np.int64), middles[None]
    if spec.windows is None:
        starts = window_starts(frames, spec.window, int(spec.stride or 1))
    else:
        starts = np.rint(np.linspace(0, max(frames - spec.window, 0), spec.windows)).astype(np.int64)
    return starts, np.stack([window_indices(int(start), spec.window, frames) for start in starts])


def encode_windows(
    works: Iterable[Work],
    spec: SemanticSpec,
    regions: RegionsSpec,
    segment_stride: int,
    model: WindowEncoder,
    projection: Projection | None,
    batch: int,
    device: torch.device,
    wanted: Callable[[Work], bool],
) -> Iterator[Work]:
    """Add the features of every wanted work that has frames and boxes; absent regions are never run.

    Raises UserError when the encoder takes windows of another length than the spec.
    """
    if model.input_shape[1] != spec.window:
        raise UserError(
            f"{spec.model} takes windows of {model.input_shape[1]} frames, this stage makes {spec.window}; "
            f"set num_frames: {spec.window} in the config of its weights entry"
        )
    size = model.input_shape[-1]
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in normalisation(spec.normalisation))
    # clip key -> (start frames, frames of every window, bool [W, views]: which views each window has)
    plans: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def rows(work: Work) -> Rows:
        lacking = work.frames is None or (spec.needs_regions and work.boxes is None)
        if lacking or work.error or not wanted(work):
            return Rows(work, 0, lambda low, high: torch.empty(0))
        assert work.frames is not None
        starts, windows = sample_windows(len(work.frames), spec)
        used = np.unique(windows)
        windows_of_used = np.searchsorted(used, windows)
        there = _presence(work, spec, regions, segment_stride, used)
        # A window has a region when any of its frames has it.
        present = np.asarray(there[:, windows_of_used].any(2)).T
        plans[work.task.key] = (starts, windows, present)
        pairs = np.argwhere(present)

        @cache
        def views() -> torch.Tensor:
            # Made when the first batch asks for it, not when the clip is drawn: off the GPU's way.
            made = _views(work, spec, regions, segment_stride, used, size, device)
            return made.sub_(mean).div_(std)

        def fetch(low: int, high: int) -> torch.Tensor:
            window, view = pairs[low:high].T
            frames = torch.from_numpy(windows_of_used[window])
            chosen = views()[torch.from_numpy(view)[:, None], frames]  # [n, window, 3, size, size]
            return chosen.transpose(1, 2)

        return Rows(work, len(pairs), fetch)

    def forward(x: torch.Tensor) -> dict[str, torch.Tensor]:
        out = model(x, tokens=spec.tokens is not None)
        made = {"features": out["features"].float()}
        if spec.tokens is not None:
            made["tokens"] = token_map(out["tokens"], tuple(spec.tokens["grid"]), projection)
        return made

    for work, out in packed((rows(work) for work in works), batch, forward, spec.precision, device):
        if out:
            assert work.frames is not None
            starts, windows, present = plans.pop(work.task.key)
            written = {"features": _laid_out(out["features"], present), "present": present.astype(np.uint8)}
            if spec.tokens is not None:
                kept = [spec.views.index(view) for view in spec.tokens["views"]]
                written["tokens"] = _laid_out(out["tokens"], present)[:, kept]
            facts = _facts(spec, len(work.frames), starts, windows)
            work.written["semantic"] = (written, {**work.facts, **facts})
        yield work


def _presence(
    work: Work, spec: SemanticSpec, regions: RegionsSpec, stride: int, used: np.ndarray
) -> np.ndarray:
    """Where each view is present: bool [views, used]."""
    whole = np.ones(len(used), bool)
    if not spec.needs_regions:
        return np.stack([whole] * len(spec.views))
    assert work.boxes is not None
    present = carry_boxes(work.boxes, used, stride, regions.carry).present.astype(bool)
    return np.stack([whole if view == "full" else present[:, REGIONS.index(view)] for view in spec.views])


def _views(
    work: Work,
    spec: SemanticSpec,
    regions: RegionsSpec,
    stride: int,
    used: np.ndarray,
    size: int,
    device: torch.device,
) -> torch.Tensor:
    """The views of the used frames: float32 [views, used, 3, size, size] on the 0-255 scale, zeros where absent."""
    assert work.frames is not None
    frames = work.frames_on(device, used if len(used) < len(work.frames) else None)
    if spec.needs_regions:
        boxes, kept = carried(work, regions, stride, used)
        masks = torch.from_numpy(kept).to(device) if regions.mask else None
    return torch.stack(
        [
            full_view(frames, size)
            if view == "full"
            else region_view(frames, masks, boxes, REGIONS.index(view), size)
            for view in spec.views
        ]
    )


def _laid_out(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Values of the present (window, view) pairs to [W, views, ...], zeros elsewhere."""
    out = np.zeros((*present.shape, *values.shape[1:]), values.dtype)
    out[present] = values
    return out


def _facts(spec: SemanticSpec, frames: int, starts: np.ndarray, windows: np.ndarray) -> dict[str, Any]:
    """What the receipt says about the windows of a clip."""
    facts = {"start_frames": starts.tolist(), "repeated_frames": max(spec.window - frames, 0)}
    if spec.sampling == "uniform":
        facts["window_frames"] = windows[0].tolist()
    return facts
