"""Features of 16-frame windows, one row per window, five views per row; token maps on request."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from pipeline.carry import carry_boxes
from pipeline.encoders.contract import WindowEncoder
from pipeline.encoders.preprocess import normalisation, window_indices, window_starts
from pipeline.errors import UserError
from pipeline.spec import REGIONS, RegionsSpec, SemanticSpec
from pipeline.stages.packing import Outputs, Rows, packed
from pipeline.stages.regions import carried
from pipeline.stages.tokens import Projection, token_map
from pipeline.stages.work import Work, raw
from pipeline.store.layout import ArraySpec
from pipeline.views import full_view, region_view

CHUNK_ROWS = 64
STEP = 16  # frames whose views are made at once


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
    plans: dict[str, tuple[_Made, dict[str, Any]]] = {}  # clip key -> (features so far, facts of the windows)
    of_tokens = [] if spec.tokens is None else [spec.views.index(view) for view in spec.tokens["views"]]

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
        made = _Made(present, {"features": [*range(len(spec.views))], "tokens": of_tokens})
        plans[work.task.key] = made, _facts(spec, len(work.frames), starts, windows)
        pairs = made.pairs

        def views(low: int, high: int) -> torch.Tensor:
            pixels = _views(work, spec, regions, segment_stride, used[low:high], size, device)
            return pixels.sub_(mean).div_(std)

        ring = ViewRing(views, windows_of_used[pairs[:, 0]], batch, device)

        def fetch(low: int, high: int) -> torch.Tensor:
            chosen = ring.windows(pairs[low:high, 1], windows_of_used[pairs[low:high, 0]])
            if high == len(pairs):
                ring.clear()
            return chosen.transpose(1, 2)

        return Rows(work, len(pairs), fetch, made.add)

    def forward(x: torch.Tensor) -> dict[str, torch.Tensor]:
        out = model(x, tokens=spec.tokens is not None)
        made = {"features": out["features"].float()}
        if spec.tokens is not None:
            made["tokens"] = token_map(out["tokens"], tuple(spec.tokens["grid"]), projection)
        return made

    for work, _ in packed((rows(work) for work in works), batch, forward, spec.precision, device):
        if work.task.key in plans:
            made, facts = plans.pop(work.task.key)
            if made.arrays:  # else no window has any of the views
                work.written["semantic"] = (made.written(), {**work.facts, **facts})
        yield work


class _Made:
    """The features of one clip, laid out as they come: [W, views, ...], zeros where a view is absent.

    Args:
        present: bool [W, views]; the rows of the encoder are its true entries, in order.
        views: array -> the views it holds.
    """

    def __init__(self, present: np.ndarray, views: dict[str, list[int]]) -> None:
        self.present, self.pairs = present, np.argwhere(present)
        self.views = views
        self.arrays: dict[str, np.ndarray] = {}
        self._rows = 0

    def add(self, out: Outputs) -> None:
        """Take the next rows."""
        for name, values in out.items():
            views = self.views[name]
            if name not in self.arrays:
                shape = (len(self.present), len(views), *values.shape[1:])
                self.arrays[name] = np.zeros(shape, values.dtype)
            window, view = self.pairs[self._rows : self._rows + len(values)].T
            held = np.isin(view, views)
            place = np.array([views.index(number) for number in view[held]], np.int64)
            self.arrays[name][window[held], place] = values[held]
        self._rows += len(values)

    def written(self) -> dict[str, np.ndarray]:
        """The arrays of the stage."""
        return {**self.arrays, "present": self.present.astype(np.uint8)}


class ViewRing:
    """The views of the frames that a batch of windows sees, in a ring: each frame is cropped and resized once.

    Args:
        make: float32 [views, high - low, 3, size, size] of the frames low to high - 1 of those that are used.
        windows: int64 [n, window], the frames of every row, rising from row to row.
        batch: most rows that are asked for at once.

    Views are made when a batch asks for them, not when the clip is drawn: off the GPU's way, and never those of a
    whole long clip at once.
    """

    def __init__(
        self, make: Callable[[int, int], torch.Tensor], windows: np.ndarray, batch: int, device: torch.device
    ) -> None:
        self._make, self._device = make, device
        first, stop = windows.min(1), windows.max(1) + 1
        last = np.minimum(np.arange(len(windows)) + batch, len(windows)) - 1
        self._slots = int((stop[last] - first).max(initial=1))
        self._frames = int(stop.max(initial=0))
        self._low = self._high = 0  # frames in the ring
        self._ring: torch.Tensor | None = None

    def windows(self, views: np.ndarray, windows: np.ndarray) -> torch.Tensor:
        """float32 [n, window, 3, size, size] of rows, each its view and its frames [n], [n, window]."""
        first, stop = int(windows.min()), int(windows.max()) + 1
        if self._ring is None or not self._low <= first <= self._high:
            self._low = self._high = first  # a batch that was cut in halves is fetched again
        while self._high < stop:
            high = min(
                self._high + STEP, first + self._slots, self._frames
            )  # never over what this batch sees
            made = self._make(self._high, high)
            if self._ring is None:
                self._ring = made.new_empty((made.shape[0], self._slots, *made.shape[2:]))
            self._ring[:, torch.arange(self._high, high, device=self._device) % self._slots] = made
            self._low, self._high = max(self._low, high - self._slots), high
        assert self._ring is not None
        slots = torch.from_numpy(windows % self._slots)
        return self._ring[torch.from_numpy(views)[:, None], slots]

    def clear(self) -> None:
        """Let go of the memory; it is made anew when asked again."""
        self._ring = None


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
    in_a_row = int(used[-1] - used[0]) + 1 == len(used)
    frames = work.frames_on(device, slice(int(used[0]), int(used[-1]) + 1) if in_a_row else used)
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


def _facts(spec: SemanticSpec, frames: int, starts: np.ndarray, windows: np.ndarray) -> dict[str, Any]:
    """What the receipt says about the windows of a clip."""
    facts = {"start_frames": starts.tolist(), "repeated_frames": max(spec.window - frames, 0)}
    if spec.sampling == "uniform":
        facts["window_frames"] = windows[0].tolist()
    return facts
