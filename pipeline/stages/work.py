"""What travels through the stages with one clip."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import ClipError
from pipeline.plan import ClipTask
from pipeline.regions import Boxes
from pipeline.store.layout import ArraySpec

if TYPE_CHECKING:  # skeletons need none
    import torch


@dataclass
class Work:
    """One clip in flight. A stage fills what it makes and reads what an earlier one made or the cache held.

    Attributes:
        frames: uint8 [F, H, W, 3] RGB, upright; None when no missing stage needs frames.
        facts: what every receipt of this clip says: frames, fps, decoder, warnings.
        labels, under: uint8 [S, h, w] part labels of the segmented frames, and what lies under garments.
        boxes: regions of the segmented frames.
        written: stage -> (arrays by name, facts) to be committed.
        error: set by the stage that refused the clip; later stages pass it on untouched.
        ends_block: no batch holds rows of this clip and of one behind it.
    """

    task: ClipTask
    frames: np.ndarray | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    labels: np.ndarray | None = None
    under: np.ndarray | None = None
    boxes: Boxes | None = None
    written: dict[str, tuple[Mapping[str, np.ndarray], dict[str, Any]]] = field(default_factory=dict)
    error: tuple[str, ClipError] | None = None  # (stage, what)
    ends_block: bool = False
    _there: "torch.Tensor | None" = None  # the frames on the GPU

    def upload(self, device: "torch.device", stream: "torch.cuda.Stream") -> None:
        """Take the frames to a GPU on a stream of its own, and wait until they are there.

        Where they find no room, frames_on tries again when earlier clips have made some.
        """
        import torch

        if self.frames is None:
            return
        with torch.cuda.stream(stream), contextlib.suppress(torch.OutOfMemoryError):
            there = torch.from_numpy(self.frames).to(device)
            stream.synchronize()
            self._there = there

    def frames_on(self, device: "torch.device", index: np.ndarray | None = None) -> "torch.Tensor":
        """The frames, or those of an index, as uint8 [F, H, W, 3] on a device; on the CPU all without a copy."""
        import torch

        if self._there is not None:
            # Its memory belongs to the uploading stream, which must not reuse it before this one has read it.
            self._there.record_stream(torch.cuda.current_stream(device))
            return self._there if index is None else self._there[torch.from_numpy(index)]
        assert self.frames is not None
        return torch.from_numpy(self.frames if index is None else self.frames[index]).to(device)

    def drop_frames(self) -> None:
        """Let go of the frames, here and on the GPU."""
        self.frames = self._there = None

    def release(self) -> None:
        """Let go of all that is large, once everything is written."""
        self.drop_frames()
        self.labels = self.under = None


def raw(name: str, dtype: str, *row_shape: int, chunk_rows: int) -> ArraySpec:
    """An uncompressed array, mapped by the reader."""
    return ArraySpec(name, dtype, row_shape, chunk_rows, "raw")


def compressed(name: str, dtype: str, *row_shape: int) -> ArraySpec:
    """An array whose rows are compressed one by one."""
    return ArraySpec(name, dtype, row_shape, 1, "zstd")
