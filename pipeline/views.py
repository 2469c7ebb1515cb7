"""The five views of a clip as VideoMAE-V2 sees them: the full frame and the four region crops.

Every frame is cropped and resized once per view; windows are then gathered by index, so overlapping windows
cost nothing here. Resizing squashes to the model's square input, bilinear without antialiasing, as the official
VideoMAE-V2 feature script does (aspect ratio not kept).
"""

import numpy as np
import torch

from pipeline.encoders.preprocess import squash_torch
from pipeline.regions import Boxes

# Frames converted to float at once; bounds memory to about 300 MB for 1080 x 1296 frames.
CHUNK = 16


def pixel_box(box: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """Shares (x1, y1, x2, y2) -> half-open pixel box inside the frame, at least one pixel wide and high."""
    x1, y1 = int(np.floor(box[0] * width)), int(np.floor(box[1] * height))
    x2, y2 = int(np.ceil(box[2] * width)), int(np.ceil(box[3] * height))
    x1, y1 = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
    return x1, y1, min(max(x2, x1 + 1), width), min(max(y2, y1 + 1), height)


def full_view(frames: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [F, H, W, 3] -> float32 [F, 3, size, size], the uncropped frame."""
    return torch.cat([squash_torch(chunk, (size, size)) for chunk in frames.split(CHUNK)])


def region_view(
    frames: torch.Tensor, regions: torch.Tensor | None, boxes: Boxes, index: int, size: int
) -> torch.Tensor:
    """The crop of region `index` in every frame: float32 [F, 3, size, size]; zeros where it is absent.

    Args:
        frames: uint8 [F, H, W, 3].
        regions: uint8 [F, h, w] region maps to mask with (index + 1 marks the region), or None for no mask.
        boxes: of the same F frames.
    """
    count, height, width, _ = frames.shape
    out = frames.new_zeros((count, 3, size, size), dtype=torch.float32)
    for start, stop in _runs(boxes, index):
        x1, y1, x2, y2 = pixel_box(boxes.box[start, index], width, height)
        for low in range(start, stop, CHUNK):
            high = min(low + CHUNK, stop)
            crop = frames[low:high, y1:y2, x1:x2]
            if regions is not None:
                rows = _source(y1, y2, height, regions.shape[1], frames.device)
                columns = _source(x1, x2, width, regions.shape[2], frames.device)
                kept = regions[low:high, rows][:, :, columns] == index + 1
                crop = crop * kept[..., None]
            out[low:high] = squash_torch(crop, (size, size))
    return out


def _source(low: int, high: int, size: int, map_size: int, device: torch.device) -> torch.Tensor:
    """Nearest row (or column) of the label map for the frame pixels low..high."""
    centres = (torch.arange(low, high, device=device) + 0.5) * (map_size / size)
    return centres.long().clamp_(max=map_size - 1)


def _runs(boxes: Boxes, index: int) -> list[tuple[int, int]]:
    """Half-open runs of frames that have the region and share one box; a clip-wide box is a single run."""
    runs: list[tuple[int, int]] = []
    previous: np.ndarray | None = None
    for frame, box in enumerate(boxes.box[:, index]):
        if not boxes.present[frame, index]:
            previous = None
        elif previous is not None and np.array_equal(box, previous):
            runs[-1] = (runs[-1][0], frame + 1)
        else:
            runs.append((frame, frame + 1))
            previous = box
    return runs
