import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.person import look_at, pasted, person_box


def test_looks_are_spread_over_the_clip() -> None:
    assert look_at(1).tolist() == [0]
    assert look_at(2).tolist() == [0, 1]
    assert look_at(101).tolist() == [0, 50, 100]


@given(
    st.tuples(st.integers(0, 29), st.integers(0, 39)),
    st.tuples(st.integers(1, 30), st.integers(1, 40)),
    st.sampled_from([(300, 400), (720, 1280), (1296, 1080), (60, 41)]),
    st.sampled_from([(1024, 768), (64, 64), (48, 64)]),
)
def test_box_holds_the_person_and_stays_in_the_frame(
    low: tuple[int, int], size: tuple[int, int], frame: tuple[int, int], shape: tuple[int, int]
) -> None:
    labels = np.zeros((2, 30, 40), np.uint8)
    labels[1, low[0] : low[0] + size[0], low[1] : low[1] + size[1]] = 21
    height, width = frame
    box = person_box(labels, frame, shape)
    if labels[1].astype(bool).mean() < 0.001:
        assert box is None
        return
    assert box is not None
    x1, y1, x2, y2 = box
    assert 0 <= x1 < x2 <= width
    assert 0 <= y1 < y2 <= height
    rows, columns = np.nonzero(labels[1])
    assert x1 <= columns.min() * width / 40 + 1
    assert x2 >= (columns.max() + 1) * width / 40 - 1
    assert y1 <= rows.min() * height / 30 + 1
    assert y2 >= (rows.max() + 1) * height / 30 - 1
    if x2 - x1 < width and y2 - y1 < height:
        assert (x2 - x1) / (y2 - y1) == pytest.approx(
            shape[1] / shape[0], rel=0.15, abs=2 / min(x2 - x1, y2 - y1)
        )


def test_box_spans_all_looks() -> None:
    labels = np.zeros((3, 30, 40), np.uint8)
    labels[0, 10:20, 5:10] = 2
    labels[2, 10:20, 25:30] = 2
    box = person_box(labels, (300, 400), (300, 400))
    assert box is not None
    assert box[0] < 50
    assert box[2] > 300


def test_a_speck_is_nobody() -> None:
    labels = np.zeros((1, 100, 100), np.uint8)
    labels[0, 50, 50:55] = 2
    assert person_box(labels, (300, 400), (300, 400)) is None


@given(st.integers(0, 300), st.integers(0, 200), st.integers(20, 100), st.integers(20, 100))
def test_pasted_labels_lie_where_the_crop_lay(x1: int, y1: int, width: int, height: int) -> None:
    labels = np.ones((1, 30, 40), np.uint8)
    labels[0, :, 20:] = 2  # the right half of the crop
    out = pasted(labels, (x1, y1, x1 + width, y1 + height), (300, 400))
    rows, columns = np.mgrid[:30, :40]
    x, y = (columns + 0.5) * 10, (rows + 0.5) * 10
    inside = (x >= x1) & (x < x1 + width) & (y >= y1) & (y < y1 + height)
    assert np.array_equal(out[0] > 0, inside)
    assert np.array_equal(out[0] == 2, inside & (x >= x1 + width / 2))


def test_a_crop_of_everything_changes_nothing() -> None:
    labels = np.random.default_rng(0).integers(0, 28, (2, 30, 40), np.uint8)
    assert np.array_equal(pasted(labels, (0, 0, 400, 300), (300, 400)), labels)
