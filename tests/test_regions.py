import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.carry import nearest_segmented
from pipeline.errors import UserError
from pipeline.regions import dress, extent, find_boxes, load_parts, region_map
from pipeline.spec import REGIONS, RegionsSpec

PARTS = load_parts()


def spec(**options: object) -> RegionsSpec:
    return RegionsSpec(reads={}, parts=PARTS.regions, **{"padding": 0.0, **options})  # type: ignore[arg-type]


def labels(frames: int = 3) -> np.ndarray:
    """A head of 4 x 4 pixels that moves right by 2 pixels a frame, and a torso that stays; 20 x 30."""
    out = np.zeros((frames, 20, 30), np.uint8)
    for t in range(frames):
        out[t, 2:6, 4 + 2 * t : 8 + 2 * t] = 2
        out[t, 8:16, 5:15] = 22
    return out


def test_every_part_belongs_to_at_most_one_region() -> None:
    ids = [i for classes in PARTS.regions.values() for i in classes]
    assert len(ids) == len(set(ids))
    assert set(range(28)) - set(ids) == {0, 1}  # background and the catch-all Apparel
    assert len(PARTS.classes) == 28
    assert all("Left" not in PARTS.classes[i] for i in PARTS.regions["head"] + PARTS.regions["body"])


def test_region_map_follows_the_table() -> None:
    every = np.arange(28, dtype=np.uint8)
    mapped = region_map(every, PARTS.regions)
    for index, region in enumerate(REGIONS):
        assert tuple(np.flatnonzero(mapped == index + 1)) == PARTS.regions[region]


def test_box_per_frame_follows_the_part() -> None:
    boxes = find_boxes(region_map(labels(), PARTS.regions), spec(box="frame"))
    for t in range(3):
        assert np.allclose(boxes.box[t, 0] * [30, 20, 30, 20], [4 + 2 * t, 2, 8 + 2 * t, 6])
    assert np.allclose(boxes.area[:, 0], 16 / 600)
    assert boxes.present.tolist() == [[1, 1, 0, 0]] * 3


def test_box_per_clip_is_the_union() -> None:
    boxes = find_boxes(region_map(labels(), PARTS.regions), spec(box="clip"))
    assert np.allclose(boxes.box[:, 0] * [30, 20, 30, 20], [[4, 2, 12, 6]] * 3)


def test_padding_is_a_share_of_the_box_and_stays_in_the_frame() -> None:
    boxes = find_boxes(region_map(labels(1), PARTS.regions), spec(padding=0.5))
    assert np.allclose(boxes.box[0, 0] * [30, 20, 30, 20], [2, 0, 10, 8])


def test_smoothing_averages_boxes() -> None:
    boxes = find_boxes(region_map(labels(), PARTS.regions), spec(box="frame", smoothing=3))
    assert np.allclose(boxes.box[1, 0] * [30, 20, 30, 20], [6, 2, 10, 6])
    assert np.allclose(boxes.box[0, 0][0] * 30, (4 + 4 + 6) / 3)


def test_absent_region_is_a_typed_empty_record() -> None:
    boxes = find_boxes(region_map(labels(), PARTS.regions), spec())
    assert boxes.box[:, 3].tolist() == [[0.0] * 4] * 3
    assert boxes.present[:, 3].tolist() == [0, 0, 0]
    assert boxes.box.dtype == np.float32
    assert boxes.present.dtype == np.uint8


def test_region_seen_in_some_frames_is_present_in_those_only() -> None:
    maps = region_map(labels(), PARTS.regions)
    maps[1][maps[1] == 1] = 0
    boxes = find_boxes(maps, spec())
    assert boxes.present[:, 0].tolist() == [1, 0, 1]
    assert boxes.box[1, 0].tolist() == [0, 0, 0, 0]


def test_a_speck_does_not_stretch_the_box() -> None:
    maps = region_map(labels(1), PARTS.regions)
    maps[0, 19, 29] = 2  # one stray pixel of the body, 1.2 % of its 81 pixels
    boxes = find_boxes(maps, spec())
    assert np.allclose(boxes.box[0, 1] * [30, 20, 30, 20], [5, 8, 15, 16])


def test_a_region_in_crumbs_keeps_its_largest_piece() -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[::2, ::2] = 1
    mask[0, 0:2] = 1
    assert extent(mask) == (0, 0, 3, 1)  # pixels (0, 0..2) touch; 400 crumbs of 1 pixel do not count


def test_clothing_rule() -> None:
    worn = np.array([[22, 22, 12, 2]], np.uint8)
    under = np.array([[10, 21, 11, 0]], np.uint8)
    assert dress(worn, under, "keep").tolist() == [[22, 22, 12, 2]]
    assert dress(worn, under, "reassign").tolist() == [[10, 21, 11, 2]]


def test_unknown_part_list() -> None:
    with pytest.raises(UserError, match="sapiens28"):
        load_parts("nobody")


@given(
    arrays(
        np.uint8,
        st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)),
        elements=st.integers(0, 4),
    )
)
def test_boxes_hold_every_large_piece(maps: np.ndarray) -> None:
    boxes = find_boxes(maps, spec(box="frame", min_area=0.0))
    assert ((boxes.box >= 0) & (boxes.box <= 1)).all()
    for t, frame in enumerate(maps):
        for index in range(4):
            there = (frame == index + 1).any()
            assert boxes.present[t, index] == there
            assert (boxes.box[t, index, 2:] > boxes.box[t, index, :2]).all() == there


@given(st.integers(1, 200), st.integers(1, 9))
def test_nearest_segmented_frame(frames: int, stride: int) -> None:
    segmented = np.arange(0, frames, stride)
    index = nearest_segmented(np.arange(frames), len(segmented), stride)
    away = np.abs(np.arange(frames)[:, None] - segmented[None])
    assert (away[np.arange(frames), index] == away.min(1)).all()
