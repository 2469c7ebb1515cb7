"""The box a clip is cropped to holds its person in every frame, and the frames are that part of the picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clip import Clip, clip_key
from pipeline.decode import DecodeJob, DecodePool, Frames
from pipeline.errors import ClipError
from pipeline.media import decode_job
from pipeline.people import PADDING, KeyBox, box_at, clip_box, crop_box
from pipeline.presets import load_recipe
from pipeline.run.build import build
from pipeline.spec import STAGES
from pipeline.store.reader import Cache
from tests.decode.clips import write_video
from tests.run.worlds import everything, import_clips

SHA = "ab" * 32
WIDTH, HEIGHT, FRAMES = 160, 96, 40


@st.composite
def tracks(draw: st.DrawFn) -> tuple[KeyBox, ...]:
    frames = sorted(draw(st.sets(st.integers(0, 100), min_size=1, max_size=6)))
    sides = st.floats(-50, 700, width=32)
    track = []
    for frame in frames:
        x1, y1 = draw(sides), draw(sides)
        track.append((frame, x1, y1, x1 + draw(st.floats(1, 200)), y1 + draw(st.floats(1, 200))))
    return tuple(track)


@given(tracks(), st.integers(0, 100), st.integers(1, 60))
def test_every_frame_s_box_lies_in_the_crop(track: tuple[KeyBox, ...], start: int, length: int) -> None:
    x1, y1, x2, y2 = crop_box(track, start, start + length)
    boxes = np.array([box_at(track, frame) for frame in range(start, start + length)])
    assert x1 <= boxes[:, 0].min()
    assert y1 <= boxes[:, 1].min()
    assert x2 >= boxes[:, 2].max()
    assert y2 >= boxes[:, 3].max()
    width = boxes[:, 2].max() - boxes[:, 0].min()
    assert x2 - x1 <= width * (1 + 2 * PADDING) + 2.01  # no larger than that: whole pixels outwards


def test_boxes_move_in_straight_lines_between_key_boxes() -> None:
    track = ((10, 0.0, 0.0, 10.0, 20.0), (20, 100.0, 50.0, 110.0, 70.0))
    assert box_at(track, 15) == (50.0, 25.0, 60.0, 45.0)
    assert box_at(track, 3) == box_at(track, 10) == (0.0, 0.0, 10.0, 20.0)
    assert box_at(track, 20) == box_at(track, 99) == (100.0, 50.0, 110.0, 70.0)
    assert crop_box(track, 15, 16) == (49, 23, 61, 47)
    assert crop_box(track, 0, None) == crop_box(track, 0, 21) == (-11, -7, 121, 77)


def test_a_crop_ends_at_the_edges_of_the_picture() -> None:
    assert clip_box((-11, 5, 50, 200), 40, 30, Path("a.mp4")) == (0, 5, 40, 30)
    assert clip_box(None, 40, 30, Path("a.mp4")) == (0, 0, 40, 30)
    with pytest.raises(ClipError, match=r"E_BBOX_OUTSIDE.*another resolution"):
        clip_box((50, 0, 90, 30), 40, 30, Path("a.mp4"))


def two_people(number: int, width: int, height: int) -> np.ndarray:
    """A red person who walks to the right, a blue one who stands: uint8 [height, width, 3]."""
    rgb = np.full((height, width, 3), 60, np.uint8)
    rgb[20:80, 10 + number : 30 + number] = (200, 30, 30)
    rgb[30:90, 120:140] = (30, 30, 200)
    return rgb


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    write_video(folder / "two.mp4", FRAMES, size=(WIDTH, HEIGHT), draw=two_people)
    return folder


def person(name: str, *track: KeyBox) -> Clip:
    return Clip(f"two:{name}", "scene", "two.mp4", person_id=name, group_id="two", bbox_track=track or None)


RED = person("red", (0, 10, 20, 30, 80), (39, 49, 20, 69, 80))
BLUE = person("blue", (0, 120, 30, 140, 90))


def decode(scene: Path, clips: Sequence[Clip]) -> list[Frames]:
    found = []
    with DecodePool(1) as pool:
        for _, result in pool.decode(decode_job(clip, scene, clip.clip_id) for clip in clips):
            assert isinstance(result, Frames), result
            found.append(result)
    return found


def test_two_people_of_one_video_are_two_clips(scene: Path) -> None:
    whole, red, blue = decode(scene, [person("all"), RED, BLUE])
    assert whole.crop is None
    for clip, part in ((RED, red), (BLUE, blue)):
        assert clip.bbox_track
        x1, y1, x2, y2 = clip_box(crop_box(clip.bbox_track, 0, None), WIDTH, HEIGHT, scene)
        assert part.crop == (x1, y1, x2, y2)
        assert np.array_equal(part.array, whole.array[:, y1:y2, x1:x2])
    assert red.crop == (4, 14, 75, 86)  # where he was and where he went: he moves in his crop
    assert blue.crop == (118, 24, 142, 96)
    assert (blue.array[..., 2] > 150).any()
    assert not (red.array[..., 2] > 150).any()
    keys = {clip_key(clip, SHA) for clip in (person("all"), RED, BLUE)}
    assert len(keys) == 3


def test_an_interval_is_cropped_to_where_the_person_is_in_it(scene: Path) -> None:
    late = Clip("late", "scene", "two.mp4", start_frame=30, end_frame=36, bbox_track=RED.bbox_track)
    whole, part = decode(scene, [person("all"), late])
    assert part.crop
    x1, y1, x2, y2 = part.crop
    assert (x1, x2) == (37, 68)
    assert np.array_equal(part.array, whole.array[30:36, y1:y2, x1:x2])


@pytest.mark.parametrize(
    ("box", "code"), [((0, 300, 20, 340, 80), "E_BBOX_OUTSIDE"), ((0, 50, 20, 52, 80), "E_TOO_SMALL")]
)
def test_a_box_that_shows_nobody_is_the_clip_s_error(scene: Path, box: KeyBox, code: str) -> None:
    with DecodePool(1) as pool:
        [(_, result)] = pool.decode([decode_job(person("odd", box), scene, "odd")])
    assert isinstance(result, ClipError)
    assert result.code == code


def test_every_stage_sees_the_person_and_nothing_else(tmp_path: Path, small_world: Path) -> None:
    """Two people side by side, cropped by their tracks, give the bytes of two videos that hold only the crops."""
    root, cache = tmp_path / "root", tmp_path / "cache"
    root.mkdir()
    world = sorted(small_world.rglob("*.mp4"))[:2]
    with DecodePool(1) as pool:
        found = [result for _, result in pool.decode(DecodeJob(path.name, path) for path in world)]
    shown = [result.array[:24] for result in found if isinstance(result, Frames)]
    scene = np.concatenate(shown, 2)
    height, width = scene.shape[1:3]
    half = width // 2
    tracks = {
        "left": (
            (0, half * 0.2, height * 0.1, half * 0.7, height * 0.9),
            (23, half * 0.3, 5, half * 0.8, height - 5),
        ),
        "right": ((0, half * 1.1, height * 0.1, half * 1.9, height * 0.9),),
    }
    lossless: dict[str, Any] = {"codec": "ffv1", "pix_fmt": "bgr0", "codec_options": {"threads": "1"}}

    def save(name: str, frames: np.ndarray) -> None:
        size = (frames.shape[2], frames.shape[1])
        write_video(root / name, len(frames), size=size, draw=lambda i, *_: frames[i].copy(), **lossless)

    save("scene.mkv", scene)
    table = ["video_path,person_id,group_id,bbox,clip_id"]
    for name, track in tracks.items():
        x1, y1, x2, y2 = clip_box(crop_box(track, 0, None), width, height, root)
        save(f"{name}.mkv", scene[:, y1:y2, x1:x2])
        boxes = json.dumps([list(box) for box in track])
        table += [f'scene.mkv,{name},scene,"{boxes}",scene-{name}', f"{name}.mkv,,,,alone-{name}"]
    (root / "clips.csv").write_text("\n".join(table))
    import_clips(cache, root, "people", "csv")
    assert build(cache, "people", load_recipe("demo")).clips.done == 4
    rows, keys = everything(cache, "people"), Cache(cache).clip_keys("people")
    assert len(set(keys.values())) == 4  # the track is part of what a clip is
    names = {(stage, array) for stage, array, _ in rows}
    assert {stage for stage, _ in names} == set(STAGES)
    for stage, array in names:
        for name in tracks:
            cropped, alone = (rows[stage, array, keys[f"{where}-{name}"]] for where in ("scene", "alone"))
            assert np.array_equal(cropped, alone), (stage, array, name)
