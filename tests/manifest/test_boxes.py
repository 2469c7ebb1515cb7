"""Boxes in cells, and their way to the frames and pixels of the video."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.datasets._boxes import parse_track, scaled

BOX = (1.0, 2.0, 30.0, 40.5)


@pytest.mark.parametrize(
    ("text", "track"),
    [
        ("[1, 2, 30, 40.5]", ((7, *BOX),)),
        ("1,2,30,40.5", ((7, *BOX),)),
        ("1 2 30 40.5", ((7, *BOX),)),
        ("[[3, 1, 2, 30, 40.5]]", ((3, *BOX),)),
        ("[[9, 1, 2, 30, 40.5], [3, 1, 2, 30, 40.5]]", ((3, *BOX), (9, *BOX))),
        ('[{"frame": 4, "bbox": [1, 2, 30, 40.5]}]', ((4, *BOX),)),
    ],
)
def test_cells(text: str, track: tuple[object, ...]) -> None:
    assert parse_track(text, 7) == track


@pytest.mark.parametrize(
    "text",
    ["", "[]", "1,2,3", "a b c d", "[[1,2,3,4]]", "[1,2,3,NaN]", "[1,2,3,1e99]", "[[-1,1,2,3,4]]", "{}", "[{}]",
     '[{"frame": null, "bbox": [1,2,3,4]}]', "[" * 5000],
)  # fmt: skip
def test_bad_cells(text: str) -> None:
    with pytest.raises(ValueError, match="box"):
        parse_track(text, 0)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='0123456789,. []{}":-eframbox', max_size=30))
def test_any_cell_is_a_track_or_a_reason(text: str) -> None:
    try:
        track = parse_track(text, 0)
    except ValueError:
        return
    assert list(track) == sorted(track)
    assert track


def test_scaling() -> None:
    track = ((5, *BOX), (10, *BOX))
    double = (2.0, 4.0, 60.0, 81.0)
    assert scaled(track, 2, 2, 6, 30, 90) == ((30, *double), (60, *double))
    assert scaled(track, 2, 2, 6, 33, 90) == (
        (33, *double),
        (60, *double),
    )  # the clip begins between key boxes
    assert scaled(track, 2, 2, 6, 61, 70) == ((61, *double),)
    assert scaled(track, 2, 2, 6, 20, 25) == ((24, *double),)  # 30 is a frame after the clip, within 12
    assert scaled(track, 2, 2, 6, 300, 400) == ()  # nothing near: validation says so
    assert scaled(track, 2, 2, 6, 0, None) == ((30, *double), (60, *double))
