"""What travels through the stages with one clip."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.decode.pool import Pictures
from pipeline.decode.spans import SpanFrames
from pipeline.errors import ClipError
from pipeline.person import PixelBox
from pipeline.plan import ClipTask
from pipeline.regions import Boxes
from pipeline.store.layout import ArraySpec
from pipeline.store.shard import PackedRows

if TYPE_CHECKING:  # skeletons need none
    import torch

ALL = slice(None)


class Labels(Protocol):
    """What a numpy array uint8 [S, h, w] is to those who slice it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


@dataclass
class Work:
    """One clip in flight. A stage fills what it makes and reads what an earlier one made or the cache held.

    Attributes:
        frames: uint8 [F, H, W, 3] RGB, upright; None when no missing stage needs frames. Of a clip without room in
            memory they are decoded where they are looked at; where only the motion stage looks, few are there.
        facts: what every receipt of this clip says: frames, fps, decoder, warnings.
        labels, under: uint8 [S, h, w] part labels of the segmented frames, and what lies under garments; maybe
            something whose slices are such arrays.
        boxes: regions of the segmented frames.
        written: stage -> (arrays by name, facts) to be committed.
        error: set by the stage that refused the clip; later stages pass it on untouched.
        ends_block: no batch holds rows of this clip and of one behind it.
    """

    task: ClipTask
    frames: Pictures | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    labels: "Labels | None" = None
    under: "Labels | None" = None
    boxes: Boxes | None = None
    written: dict[str, tuple[Mapping[str, np.ndarray | PackedRows], dict[str, Any]]] = field(
        default_factory=dict
    )
    error: tuple[str, ClipError] | None = None  # (stage, what)
    ends_block: bool = False
    _there: "torch.Tensor | None" = None  # the frames on the GPU

    def upload(self, device: "torch.device", stream: "torch.cuda.Stream") -> None:
        """Take the frames to a GPU on a stream of its own, and wait until they are there.

        Where they find no room, frames_on tries again when earlier clips have made some.
        """
        import torch

        if not isinstance(self.frames, np.ndarray):
            return
        with torch.cuda.stream(stream), contextlib.suppress(torch.OutOfMemoryError):
            there = torch.from_numpy(self.frames).to(device)
            stream.synchronize()
            self._there = there

    def frames_on(self, device: "torch.device", index: np.ndarray | slice = ALL) -> "torch.Tensor":
        """The frames of an index as uint8 [n, H, W, 3] on a device; those of a slice without a copy on the CPU."""
        import torch

        if self._there is not None:
            # Its memory belongs to the uploading stream, which must not reuse it before this one has read it.
            self._there.record_stream(torch.cuda.current_stream(device))
            return self._there[index if isinstance(index, slice) else torch.from_numpy(index)]
        assert self.frames is not None
        return torch.from_numpy(self.frames[index]).to(device)

    def frames_seen(self, device: "torch.device", box: PixelBox | None = None) -> "torch.Tensor | SpansSeen":
        """All frames on a device, cropped to a box; of a clip without room what gives those of an index."""
        if isinstance(self.frames, SpanFrames):
            return SpansSeen(self, device, box)
        frames = self.frames_on(device)
        return frames if box is None else frames[:, box[1] : box[3], box[0] : box[2]]

    def drop_frames(self) -> None:
        """Let go of the frames, here and on the GPU. Where they failed to be decoded again, the clip is refused."""
        if isinstance(self.frames, SpanFrames):
            self.frames.drop()
            if self.frames.error is not None:
                self.error = ("decode", self.frames.error)
        self.frames = self._there = None

    def release(self) -> None:
        """Let go of all that is large, once everything is written."""
        self.drop_frames()
        self.labels = self.under = None


class SpansSeen:
    """Frames of a clip without room in memory, as a segmenter sees the tensor of others: by shape, length and index."""

    def __init__(self, work: Work, device: "torch.device", box: PixelBox | None) -> None:
        assert work.frames is not None
        height, width = work.frames.shape[1:3]
        self._work, self._device, self._box = work, device, box or (0, 0, width, height)
        x1, y1, x2, y2 = self._box
        self.shape = (len(work.frames), y2 - y1, x2 - x1, 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: "int | torch.Tensor") -> "torch.Tensor":
        x1, y1, x2, y2 = self._box
        frames = self._work.frames_on(self._device, np.asarray(index))
        return frames[..., y1:y2, x1:x2, :]


def raw(name: str, dtype: str, *row_shape: int, chunk_rows: int) -> ArraySpec:
    """An uncompressed array, mapped by the reader."""
    return ArraySpec(name, dtype, row_shape, chunk_rows, "raw")


def compressed(name: str, dtype: str, *row_shape: int) -> ArraySpec:
    """An array whose rows are compressed one by one."""
    return ArraySpec(name, dtype, row_shape, 1, "zstd")
