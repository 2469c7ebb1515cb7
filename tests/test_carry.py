import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.carry import carry_boxes, carry_maps, nearest_segmented
from pipeline.regions import Boxes, find_boxes
from pipeline.spec import RegionsSpec

SPEC = RegionsSpec(reads={}, parts={}, box="frame", padding=0.0, min_area=0.0)
MAPS = arrays(
    np.uint8,
    st.tuples(st.integers(1, 4), st.integers(1, 10), st.integers(1, 10)),
    elements=st.integers(0, 4),
)
CARRY = pytest.mark.parametrize("carry", ["nearest", "blend"])


def disc(x: float, radius: float = 10, size: int = 64) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return ((rows - size // 2) ** 2 + (columns - x) ** 2 < radius**2).astype(np.uint8)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@CARRY
@given(maps=MAPS, stride=st.integers(1, 5), more=st.integers(0, 4))
def test_segmented_frames_stay_as_they_are(carry: str, maps: np.ndarray, stride: int, more: int) -> None:
    count = (len(maps) - 1) * stride + 1 + min(more, stride - 1)
    every = np.arange(count)
    boxes = find_boxes(maps, SPEC)
    carried, held = carry_maps(maps, every, stride, carry), carry_boxes(boxes, every, stride, carry)
    assert carried.shape == (count, *maps.shape[1:])
    assert np.array_equal(carried[::stride], maps)
    assert np.array_equal(held.box[::stride], boxes.box)
    assert np.array_equal(held.present[::stride], boxes.present)
    for after in range((len(maps) - 1) * stride + 1, count):  # after the last segmented frame it is held
        assert np.array_equal(carried[after], maps[-1])
        assert np.array_equal(held.box[after], boxes.box[-1])


@CARRY
@given(maps=MAPS, stride=st.integers(1, 5))
def test_any_selection_of_frames_is_that_of_all(carry: str, maps: np.ndarray, stride: int) -> None:
    every = np.arange((len(maps) - 1) * stride + 1)
    some = every[::-2]
    assert np.array_equal(carry_maps(maps, some, stride, carry), carry_maps(maps, every, stride, carry)[some])


@given(maps=MAPS, stride=st.integers(2, 5))
def test_what_does_not_move_stays(maps: np.ndarray, stride: int) -> None:
    still = np.stack([maps[0]] * 2)
    assert (carry_maps(still, np.arange(stride + 1), stride, "blend") == maps[0]).all()


@given(maps=MAPS, stride=st.integers(1, 5))
def test_presence_and_one_sided_boxes_are_those_of_the_nearest(maps: np.ndarray, stride: int) -> None:
    every = np.arange((len(maps) - 1) * stride + 1)
    boxes = find_boxes(maps, SPEC)
    near = nearest_segmented(every, len(maps), stride)
    held = carry_boxes(boxes, every, stride, "blend")
    assert np.array_equal(held.present, boxes.present[near])
    assert not held.box[held.present == 0].any()
    assert (held.box.dtype, held.area.dtype) == (np.float32, np.float32)


def test_blended_shapes_move() -> None:
    maps = np.stack([disc(20), disc(32)])
    for frame in range(1, 6):
        truth = disc(20 + 2 * frame)
        blended = carry_maps(maps, np.array([frame]), 6, "blend")[0]
        nearest = carry_maps(maps, np.array([frame]), 6, "nearest")[0]
        assert iou(blended, truth) > max(iou(nearest, truth) + 0.05, 0.75)


def test_blended_shapes_grow() -> None:
    maps = np.stack([disc(32, 8), disc(32, 16)])
    (middle,) = carry_maps(maps, np.array([2]), 4, "blend")
    assert iou(middle, disc(32, 12)) > 0.95


def test_blended_boxes_move() -> None:
    maps = np.stack([disc(20), disc(32)])
    held = carry_boxes(find_boxes(maps, SPEC), np.arange(5), 4, "blend")
    x1 = held.box[:, 0, 0] * 64
    assert np.allclose(x1, np.linspace(x1[0], x1[-1], 5))
    assert x1[-1] - x1[0] == pytest.approx(12)


def test_a_region_on_one_side_only_is_as_on_the_nearer_side() -> None:
    maps = np.stack([disc(20), np.zeros_like(disc(20))])
    carried = carry_maps(maps, np.arange(5), 4, "blend")
    assert [bool(frame.any()) for frame in carried] == [True, True, True, False, False]
    boxes = find_boxes(maps, SPEC)
    held = carry_boxes(boxes, np.arange(5), 4, "blend")
    assert held.present[:, 0].tolist() == [1, 1, 1, 0, 0]
    assert np.array_equal(held.box[1], boxes.box[0])


def test_nearest_takes_boxes_as_they_are() -> None:
    boxes = Boxes(
        np.arange(32, dtype=np.float32).reshape(2, 4, 4), np.ones((2, 4)), np.ones((2, 4), np.uint8)
    )
    held = carry_boxes(boxes, np.arange(5), 4, "nearest")
    assert held.box[:, 0, 0].tolist() == [0, 0, 0, 16, 16]
