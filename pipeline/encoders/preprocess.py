"""From decoded frames to encoder inputs: which frames, which size, which numbers.

Each encoder repeats the preprocessing of its original code exactly, because frozen weights have seen nothing
else: MANet resizes uint8 with OpenCV and crops the centre, Sapiens squashes uint8 with OpenCV, VideoMAE-V2's
feature script squashes float32 with torch. Frames come in as uint8 RGB, channels last, as numpy arrays or as
tensors; tensors stay on their device.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Images = TypeVar("Images", np.ndarray, "Tensor")

MANET_SEGMENTS = 8

# Name -> mean and std of R, G, B on the 0-255 scale. "imagenet" and "mmseg" (Sapiens training) are the same
# numbers; "lite" is what the released Sapiens demo subtracts; "none" only divides by 255, as the official
# VideoMAE-V2 feature script does.
NORMALISATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "mmseg": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "lite": ((123.5, 116.5, 103.5), (58.5, 57.0, 57.5)),
    "none": ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
}


def normalisation(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std (R, G, B, 0-255) by name; UserError listing the names when there is none such."""
    if name not in NORMALISATIONS:
        raise UserError(f"unknown normalisation {name!r}: use one of {', '.join(NORMALISATIONS)}")
    return NORMALISATIONS[name]


def manet_indices(n_frames: int) -> np.ndarray:
    """The 8 frames MANet sees of a clip of n_frames >= 1: int64 [8], centres of 8 equal parts, rounded down.

    The test rule of mmaction2 0.24 (SampleFrames with clip_len 1); newer releases sample differently.
    """
    part = n_frames / MANET_SEGMENTS
    return (np.arange(MANET_SEGMENTS) * part + part / 2).astype(np.int64) % n_frames


def videomae_indices(n_frames: int, window: int = 16, sampling: int = 4) -> np.ndarray:
    """The single validation window of supervised VideoMAE-V2: int64 [window], about every sampling-th frame.

    A clip no longer than window * sampling is spanned whole (its last frame fills up the window); of a longer
    one the centre is taken.
    """
    span = window * sampling
    if n_frames <= span:
        points = np.linspace(0, n_frames, n_frames // sampling)
        points = np.concatenate((points, np.full(window - len(points), n_frames)))
        return np.minimum(points, n_frames - 1).astype(np.int64)
    end = (span + n_frames) // 2
    return np.minimum(np.linspace(end - span, end, window), end - 1).astype(np.int64)


def window_starts(n_frames: int, window: int, stride: int) -> np.ndarray:
    """First frames of the windows of a clip: int64 [N], 0, stride, 2 * stride, ... while a whole window fits.

    N = (n_frames - window) // stride + 1; a clip shorter than the window gets one, see window_indices.
    """
    return np.arange(0, max(n_frames - window, 0) + 1, stride, dtype=np.int64)


def window_indices(start: int, window: int, n_frames: int) -> np.ndarray:
    """Consecutive frames of one window: int64 [window]; past the end the last frame repeats."""
    return np.minimum(np.arange(start, start + window, dtype=np.int64), n_frames - 1)


def squash_cv2(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Squash uint8 [F, H, W, 3] to [F, height, width, 3], OpenCV bilinear; the aspect is not kept."""
    import cv2

    height, width = size
    if images.shape[1:3] == (height, width):
        return images
    resized = np.empty((len(images), height, width, images.shape[3]), np.uint8)
    for source, target in zip(images, resized, strict=True):
        cv2.resize(source, (width, height), dst=target, interpolation=cv2.INTER_LINEAR)
    return resized


def squash_integer(images: "Tensor", size: tuple[int, int]) -> "Tensor":
    """squash_cv2 bit for bit, in torch's integers on the device of the images, where OpenCV cannot go.

    OpenCV (resize.cpp, uint8 INTER_LINEAR) rounds the two weights of an axis to 1/2048, adds up columns exactly
    and drops 4 bits, then keeps the upper 16 bits of each row's product, adds 2 and drops the last 2 bits. At
    exactly half the size this is the rounded mean of 2 x 2 pixels, which OpenCV computes as such.
    """
    import torch

    height, width = size
    if images.shape[1:3] == (height, width):
        return images
    left, right, left_share, right_share = _taps(images.shape[2], width, images.device)
    top, bottom, top_share, bottom_share = _taps(images.shape[1], height, images.device, edges=True)

    def across(rows: "Tensor") -> "Tensor":  # int32 [F, height, width, 3], 15 bits
        x = images[:, rows]
        return (x[:, :, left] * left_share[:, None] + x[:, :, right] * right_share[:, None]) >> 4

    upper = (across(top) * top_share[:, None, None]) >> 16
    lower = (across(bottom) * bottom_share[:, None, None]) >> 16
    return ((upper + lower + 2) >> 2).to(torch.uint8)


def _taps(
    source: int, target: int, device: "torch.device", edges: bool = False
) -> tuple["Tensor", "Tensor", "Tensor", "Tensor"]:
    """For each of `target` pixels the two of `source` it lies between, and their weights in 1/2048.

    Outside the first and last pixel centre OpenCV takes the outermost column alone but weighs the outermost row
    against itself (`edges`), which rounds differently.
    """
    import torch

    centres = torch.arange(target, dtype=torch.float64, device=device) + 0.5
    place = (centres * (1 / (target / source)) - 0.5).float()  # the ratio is inverted twice, as OpenCV does
    low = place.floor()
    share = place - low
    if not edges:
        share = share.where((low >= 0) & (low < source - 1), 0.0)
    index = low.long()
    weights = (((1 - share) * 2048).round().int(), (share * 2048).round().int())
    return index.clamp(0, source - 1), (index + 1).clamp(0, source - 1), *weights


def squash(images: Images, size: tuple[int, int]) -> Images:
    """Squash uint8 [F, H, W, 3] to [F, height, width, 3] where the images are; the numbers are OpenCV's."""
    if isinstance(images, np.ndarray):
        return squash_cv2(images, size)
    if images.device.type != "cpu":
        return squash_integer(images, size)
    import torch

    return torch.from_numpy(squash_cv2(images.numpy(), size))


def resize_short_side(images: Images, short_side: int) -> Images:
    """Resize uint8 [F, H, W, 3] so that the shorter side is short_side, aspect kept, OpenCV bilinear.

    Sides are rounded half up, as mmcv does: 1296 x 1080 at 256 becomes 307 x 256.
    """
    height, width = images.shape[1:3]
    scale = short_side / min(height, width)
    return squash(images, (int(height * scale + 0.5), int(width * scale + 0.5)))


def centre_crop(images: Images, size: int) -> Images:
    """The central size x size pixels of [F, H, W, 3] (a view); offsets are rounded down."""
    height, width = images.shape[1:3]
    if min(height, width) < size:
        raise ValueError(f"cannot crop {size} x {size} out of {height} x {width}")
    top, left = (height - size) // 2, (width - size) // 2
    return images[:, top : top + size, left : left + size]


def _channels_first(images: "np.ndarray | Tensor") -> "Tensor":
    # A view: still uint8, still channels last in memory.
    import torch

    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images if images.flags.writeable else images.copy())
    return images.movedim(-1, -3)


def _normalise(x: "Tensor", mean: Sequence[float], std: Sequence[float]) -> "Tensor":
    # In place: x is always a fresh contiguous tensor of the caller's.
    return x.sub_(x.new_tensor(mean)[:, None, None]).div_(x.new_tensor(std)[:, None, None])


def to_float(images: "np.ndarray | Tensor", mean: Sequence[float], std: Sequence[float]) -> "Tensor":
    """uint8 RGB [..., H, W, 3] to normalised float32 [..., 3, H, W]; mean and std are on the 0-255 scale."""
    import torch

    x = _channels_first(images).to(torch.float32, memory_format=torch.contiguous_format)
    return _normalise(x, mean, std)


def squash_torch(images: "np.ndarray | Tensor", size: tuple[int, int]) -> "Tensor":
    """Squash uint8 [F, H, W, 3] to float32 [F, 3, height, width], values 0-255; the aspect is not kept.

    Torch bilinear on floats, corners unaligned, no antialias.
    """
    import torch.nn.functional as F

    # Made contiguous after the resize, not before: 2.5 times faster, as most pixels of a frame are not read.
    frames = _channels_first(images).float()
    return F.interpolate(frames, size=size, mode="bilinear", align_corners=False).contiguous()


def manet_input(images: Images, short_side: int = 256, crop: int = 224) -> "Tensor":
    """Segments uint8 [8, H, W, 3] to float32 [8, 3, crop, crop]: short side, centre crop, ImageNet mean."""
    resized = centre_crop(resize_short_side(images, short_side), crop)
    return to_float(resized, *normalisation("imagenet"))


def videomae_input(
    images: "np.ndarray | Tensor", size: int, normalisation_name: str = "imagenet"
) -> "Tensor":
    """Frames uint8 [F, H, W, 3] to float32 [F, 3, size, size], squashed as the official feature script does.

    Windows are gathered from these frames afterwards, because neighbouring windows share most of theirs.
    """
    mean, std = normalisation(normalisation_name)
    return _normalise(squash_torch(images, (size, size)), mean, std)


def sapiens_input(
    images: Images, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> "Tensor":
    """Frames uint8 [F, H, W, 3] to float32 [F, 3, height, width], squashed, for Sapiens."""
    return to_float(squash(images, size), mean, std)
