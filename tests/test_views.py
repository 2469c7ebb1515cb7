import numpy as np
import torch
import torch.nn.functional as F

from pipeline.regions import Boxes
from pipeline.views import full_view, pixel_box, region_view


def boxes(box: list[float], frames: int, absent: tuple[int, ...] = ()) -> Boxes:
    all_boxes = np.zeros((frames, 4, 4), np.float32)
    all_boxes[:, 0] = box
    present = np.zeros((frames, 4), np.uint8)
    present[:, 0] = 1
    present[list(absent)] = 0
    return Boxes(all_boxes, np.zeros((frames, 4), np.float32), present)


def noise(frames: int = 20, height: int = 24, width: int = 32) -> torch.Tensor:
    return torch.randint(
        0, 256, (frames, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_pixel_box_covers_the_shares_and_is_never_empty() -> None:
    assert pixel_box(np.array([0.26, 0.24, 0.74, 0.51]), 10, 10) == (2, 2, 8, 6)
    assert pixel_box(np.array([1.0, 1.0, 1.0, 1.0]), 10, 10) == (9, 9, 10, 10)


def test_full_view_is_the_squashed_frame() -> None:
    frames = noise()
    expected = F.interpolate(
        frames.permute(0, 3, 1, 2).float(), (16, 16), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(full_view(frames, 16), expected)


def test_region_view_crops_then_masks_then_resizes() -> None:
    frames = noise()
    maps = torch.zeros((20, 24, 32), dtype=torch.uint8)
    maps[:, 6:12, 8:12] = 1
    maps[:, 6:12, 12:16] = 2
    view = region_view(frames, maps, boxes([8 / 32, 6 / 24, 16 / 32, 12 / 24], 20), 0, 16)
    crop = frames[:, 6:12, 8:16].permute(0, 3, 1, 2).float()
    crop[..., 4:] = 0
    torch.testing.assert_close(view, F.interpolate(crop, (16, 16), mode="bilinear", align_corners=False))


def test_no_mask_keeps_the_background() -> None:
    frames = noise()
    whole = boxes([0, 0, 1, 1], 20)
    torch.testing.assert_close(region_view(frames, None, whole, 0, 16), full_view(frames, 16))


def test_mask_of_half_the_size_is_spread_over_the_frame() -> None:
    frames = torch.full((1, 24, 32, 3), 200, dtype=torch.uint8)
    maps = torch.zeros((1, 12, 16), dtype=torch.uint8)
    maps[0, :6] = 1
    view = region_view(frames, maps, boxes([0, 0, 1, 1], 1), 0, 24)
    assert (view[0, :, :12] == 200).all()
    assert (view[0, :, 12:] == 0).all()


def test_absent_frames_are_zero_and_others_untouched() -> None:
    frames = noise()
    with_gap = region_view(frames, None, boxes([0, 0, 0.5, 0.5], 20, absent=(3, 4)), 0, 16)
    without = region_view(frames, None, boxes([0, 0, 0.5, 0.5], 20), 0, 16)
    assert (with_gap[3:5] == 0).all()
    keep = [t for t in range(20) if t not in (3, 4)]
    torch.testing.assert_close(with_gap[keep], without[keep])
