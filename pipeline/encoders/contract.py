"""What the stages ask of an encoder. A class that answers this can be added in one file; see docs/segmentation.md."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.plan import ClipTask
    from pipeline.spec import SegmentSpec


@runtime_checkable
class Segmenter(Protocol):
    """Part labels of single frames, for the segment stage.

    Attributes:
        parts: the list of manifests/parts.yaml whose ids it labels with.
        image_size: (height, width) of the pictures it looks at, or None when it looks at none (landmarks): a
            crop around the person would not help it.
    """

    parts: str
    image_size: tuple[int, int] | None

    def inputs(
        self, frames: "Tensor", spec: "SegmentSpec", task: "ClipTask", index: np.ndarray
    ) -> "Callable[[int, int], Tensor]":
        """The rows of one clip: a function from low, high to the rows [high - low, ...], called with rising ranges.

        Args:
            frames: uint8 [F, H, W, 3] RGB, all frames of the clip on the model's device, whole or cropped.
            index: int64 [n], rising: the frames to label, one row each.

        Raises:
            ClipError: this clip cannot be used. It is raised here, never while rows are made.
        """
        ...

    def __call__(self, rows: "Tensor") -> "dict[str, Tensor]":
        """Rows of any clips, each on its own, to `logits` [n, classes, h, w] of any size, background first.

        A segmenter without logits gives `labels` uint8 [n, *spec.label_size] instead.
        """
        ...


@runtime_checkable
class WindowEncoder(Protocol):
    """One feature vector per window of frames, for the semantic stage; see docs/encoders.md.

    Attributes:
        input_shape: (3, T, H, W) of one window.
        feature_dim: D.
        token_shape: (T', H', W') of the token map; T' = T / 2 where a token spans two frames.
    """

    input_shape: tuple[int, int, int, int]
    feature_dim: int
    token_shape: tuple[int, int, int]

    def __call__(self, x: "Tensor", tokens: bool = False) -> "dict[str, Tensor]":
        """Normalised RGB windows [B, 3, T, H, W] to "features" [B, D], and "tokens" [B, T', H', W', D] on demand.

        Windows are independent of each other, and the same window gives the same numbers.
        """
        ...
