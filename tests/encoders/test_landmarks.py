"""Landmarks to part labels: the geometry, the files, the MediaPipe process, and real clips through the pipeline."""

import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.encoders import mediapipe_process
from pipeline.encoders.landmarks import LandmarkSegmenter, read_landmarks
from pipeline.encoders.limbs import Landmarks, _spread, limb_labels
from pipeline.encoders.mediapipe_process import MediapipeProcess
from pipeline.errors import ClipError, UserError
from pipeline.regions import load_parts, region_map
from pipeline.spec import REGIONS
from tests.run.worlds import import_clips

from .segmenters import FRAMES, HEIGHT, STANDING, WIDTH, make_task, standing

DATA = os.environ.get("BMOE_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="BMOE_DATA does not name the folder of real clips")
ARRAYS = ("pose", "left_hand", "right_hand", "person")


def body(**changes: np.ndarray) -> Landmarks:
    held = {**standing(), **changes}
    return Landmarks(*(held[name] for name in ARRAYS))


def at(labels: np.ndarray, point: tuple[float, float]) -> int:
    return int(labels[int(point[1] * labels.shape[0]), int(point[0] * labels.shape[1])])


def test_joints_lie_in_their_parts_left_and_right_kept() -> None:
    labels = limb_labels(body(), 0)
    joints = {0: 2, 15: 5, 16: 14, 31: 4, 32: 13}
    assert {joint: at(labels, STANDING[joint]) for joint in joints} == joints
    assert at(labels, (0.5, 0.4)) == 21  # chest
    middles = {
        (11, 13): 10, (12, 14): 19, (13, 15): 6, (14, 16): 15, (23, 25): 11, (24, 26): 20, (25, 27): 7, (26, 28): 16,
    }  # fmt: skip
    assert {
        (a, b): at(labels, ((STANDING[a][0] + STANDING[b][0]) / 2, (STANDING[a][1] + STANDING[b][1]) / 2))
        for a, b in middles
    } == middles
    assert set(np.unique(labels)) == {0, 2, 4, 5, 6, 7, 10, 11, 13, 14, 15, 16, 19, 20, 21}


def test_labels_stay_on_the_person_and_cover_it() -> None:
    held = body()
    for frame in range(FRAMES):
        labels = limb_labels(held, frame)
        assert labels.dtype == np.uint8
        assert np.array_equal(labels > 0, held.person[frame] >= 128)


def test_hand_landmarks_take_the_place_of_the_wrist_guess() -> None:
    hand = np.full((FRAMES, 21, 4), np.nan, np.float32)
    hand[:, :, :2] = (0.52, 0.17)  # the left hand in the face
    hand[:, :, 2:] = 0
    labels = limb_labels(body(left_hand=hand), 0)
    assert at(labels, (0.52, 0.17)) == 5
    assert at(labels, STANDING[15]) == 6  # where the hand was guessed is forearm now


def test_hidden_joints_bend_no_limb() -> None:
    pose = standing()["pose"]
    pose[:, [15, 17, 19], 3] = 0.1
    labels = limb_labels(body(pose=pose), 0)
    assert not np.isin(labels, (5, 6)).any()
    assert at(labels, STANDING[15]) in (7, 10, 11)  # the nearest limb that is seen


def test_joints_outside_the_picture_still_lead_limbs_there() -> None:
    pose = standing()["pose"]
    pose[:, 25:, 1] += 0.5  # cut at the thighs
    pose[:, 25:, 3] = 0.0
    labels = limb_labels(body(pose=pose), 0)
    assert (at(labels, (0.575, 0.8)), at(labels, (0.425, 0.8))) == (11, 20)


def test_nobody_and_everywhere() -> None:
    assert not limb_labels(body(pose=np.full((FRAMES, 33, 4), np.nan, np.float32)), 0).any()
    far = standing()["pose"]
    far[:, :, :2] += 1e6  # as a damaged file may have it
    assert not limb_labels(body(pose=far), 0).any()


@given(
    arrays(
        np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 0, 0, 5, 7])
    )
)
def test_pixels_take_the_nearest_limb(painted: np.ndarray) -> None:
    spread = _spread(painted)
    there = np.argwhere(painted > 0)
    if not len(there):
        assert not spread.any()
        return
    for pixel in np.ndindex(painted.shape):
        away = np.linalg.norm(there - pixel, axis=1)
        own = away[painted[tuple(there.T)] == spread[pixel]]
        assert own.min() <= 1.03 * away.min()  # OpenCV's 5 x 5 distances are 2 % off at most


# Files


def write(folder: Path, name: str = "walk.npz", **changes: np.ndarray | None) -> Path:
    folder.mkdir(exist_ok=True)
    held = {name: value for name, value in {**standing(), **changes}.items() if value is not None}
    np.savez(folder / name, **held)  # type: ignore[arg-type]
    return folder


def frames(count: int = FRAMES) -> torch.Tensor:
    return torch.zeros(count, HEIGHT, WIDTH, 3, dtype=torch.uint8)


def test_rows_of_the_wanted_frames(tmp_path: Path) -> None:
    held = read_landmarks(write(tmp_path), make_task(), frames(), np.array([1, 4]))
    assert np.array_equal(held.pose, standing()["pose"][[1, 4]])
    assert held.person.shape == (2, HEIGHT, WIDTH)


def test_a_clip_cut_from_a_video_takes_its_own_rows(tmp_path: Path) -> None:
    cut = make_task(start_frame=2, end_frame=5)
    held = read_landmarks(write(tmp_path), cut, frames(3), np.arange(3))
    assert np.array_equal(held.pose, standing()["pose"][2:5])
    with pytest.raises(ClipError, match="it has 7 rows, the clip needs 8"):
        read_landmarks(tmp_path, make_task(start_frame=5, end_frame=8), frames(3), np.arange(3))


def test_the_folders_of_the_video_come_first(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path / "some", pose=standing(step=0.0)["pose"])
    held = read_landmarks(tmp_path, make_task(), frames(), np.arange(FRAMES))
    assert np.array_equal(held.pose, standing(step=0.0)["pose"])


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"pose": standing(FRAMES - 1)["pose"]}, "left_hand is float32 (7, 21, 4), not float [6, 21, 4]"),
        (standing(FRAMES + 1), "it has 8 rows, the clip needs 7"),
        (standing(FRAMES - 2), "it has 5 rows, the clip needs 7"),
        ({"pose": standing()["pose"][:, :25]}, "pose is float32 (7, 25, 4)"),
        ({"left_hand": np.zeros((FRAMES, 21, 4), int)}, "left_hand is int64"),
        ({"person": np.zeros((FRAMES, 9, 9), np.float32)}, "person is float32"),
        ({"person": np.zeros((FRAMES, 0, 9), np.uint8)}, "person is uint8 (7, 0, 9)"),
        ({"size": np.array([WIDTH, HEIGHT])}, f"it is for pictures of [{WIDTH}, {HEIGHT}]"),
        ({"person": None}, "person"),
        ({"pose": np.array([{"a": 1}], object)}, "not readable"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, np.ndarray | None], word: str
) -> None:
    write(tmp_path, **changes)
    with pytest.raises(ClipError) as caught:
        read_landmarks(tmp_path, make_task(), frames(), np.arange(FRAMES))
    assert caught.value.code == "E_LANDMARKS"
    assert word in str(caught.value)
    assert "walk.npz" in str(caught.value)


def test_a_missing_or_damaged_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no landmark files"):
        LandmarkSegmenter.from_files(tmp_path)
    (tmp_path / "other.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ClipError, match=r"walk\.npz is not there"):
        read_landmarks(tmp_path, make_task(), frames(), np.arange(FRAMES))
    (tmp_path / "walk.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ClipError, match="not readable as landmarks"):
        read_landmarks(tmp_path, make_task(), frames(), np.arange(FRAMES))


# MediaPipe, played by a process that speaks like it

PLAYED = """#!{python}
import sys, types, runpy
import numpy as np
class Point:
    def __init__(self, x): self.x, self.y, self.z, self.visibility = x, 0.5, 0.0, 1.0
class Found:
    pass
class Holistic:
    def __init__(self, model_complexity, enable_segmentation):
        assert (model_complexity, enable_segmentation) == (1, True)
        print("chatter on stdout")
        self.seen = 100
    def reset(self): self.seen = 0
    def process(self, frame):
        {trouble}
        self.seen += 1
        found = Found()
        found.pose_landmarks = types.SimpleNamespace(landmark=[Point(self.seen)] * 33)
        found.left_hand_landmarks = None
        found.right_hand_landmarks = types.SimpleNamespace(landmark=[Point(float(frame.mean()))] * 21)
        found.segmentation_mask = frame[:, :, 0].astype(np.float32) / 255
        return found
mediapipe = types.ModuleType("mediapipe")
mediapipe.__version__ = "{version}"
mediapipe.solutions = types.SimpleNamespace(holistic=types.SimpleNamespace(Holistic=Holistic))
sys.modules["mediapipe"] = mediapipe
assert sys.argv[1] == "-I"
runpy.run_path(sys.argv[2], run_name="__main__")
"""


def played(folder: Path, trouble: str = "pass", version: str = mediapipe_process.VERSION) -> str:
    """An interpreter that has something like mediapipe; it runs the real worker."""
    path = folder / "python"
    path.write_text(PLAYED.format(python=sys.executable, trouble=trouble, version=version))
    path.chmod(0o755)
    return str(path)


def grey(count: int = 4) -> torch.Tensor:
    values = torch.arange(count, dtype=torch.uint8) * 51
    return values[:, None, None, None].expand(count, 40, 24, 3).contiguous()


def test_process_answers_frame_by_frame_and_starts_every_clip_anew(tmp_path: Path) -> None:
    process = MediapipeProcess(played(tmp_path))
    for _ in range(2):
        held = process(make_task(), grey(), np.array([0, 2, 3]))
        assert held.pose.shape == (3, 33, 4)
        assert held.pose[:, 0, 0].tolist() == [1, 2, 3]  # frames seen since the clip began
        assert np.isnan(held.left_hand).all()
        assert held.right_hand[:, 0, 0].tolist() == [0, 102, 153]
        assert held.person.shape == (3, 10, 6)
        assert held.person[:, 5, 3].tolist() == [0, 102, 153]


def test_a_hanging_process_costs_one_clip(tmp_path: Path) -> None:
    hang = "import time; time.sleep(60 if frame.mean() > 100 else 0)"
    process = MediapipeProcess(played(tmp_path, hang), frame_s=0.5)
    first = process.process
    assert first is not None
    began = time.monotonic()
    with pytest.raises(ClipError, match=r"E_LANDMARKS: MediaPipe was silent for 0.5 s at frame 2"):
        process(make_task(), grey(), np.arange(4))
    assert time.monotonic() - began < 10
    assert first.poll() is not None
    assert len(process(make_task(), grey(1), np.arange(1)).pose) == 1  # the next clip has a new process


def test_a_crashing_process_costs_one_clip(tmp_path: Path) -> None:
    process = MediapipeProcess(played(tmp_path, "import os; os._exit(3)"))
    with pytest.raises(ClipError, match="MediaPipe crashed at frame 0"):
        process(make_task(), grey(), np.arange(4))


def test_the_process_ends_with_its_owner(tmp_path: Path) -> None:
    process = MediapipeProcess(played(tmp_path))
    child = process.process
    assert child is not None
    del process
    assert child.wait(timeout=5) is not None


def test_another_version_or_none_says_how_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"it has mediapipe 0.9.1.*pip install mediapipe==0.10.21"):
        MediapipeProcess(played(tmp_path, version="0.9.1"))
    with pytest.raises(UserError, match="cannot be run"):
        MediapipeProcess(str(tmp_path / "nowhere" / "python"))
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no module named mediapipe >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(UserError, match="no module named mediapipe"):
        MediapipeProcess(str(broken))
    monkeypatch.delenv(mediapipe_process.PYTHON, raising=False)
    monkeypatch.setattr(mediapipe_process, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed beside this program"):
        LandmarkSegmenter.from_files(None)


# Real clips

CLIPS = ("ma52_nodding", "ma52_shaking_body", "ma52_shaking_head", "ma52_turning_around")
PRESET = {
    "segment": {"weights": "landmarks", "label_size": [324, 270]},
    "regions": {"box": "frame", "padding": 0.0},
    "semantic": {"weights": "demo-videomaev2", "stride": 16},
    "motion": {"weights": "demo-manet", "short_side": 96, "crop": 96},
}


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four MA-52 clips through decode, segment and regions."""
    from pipeline.presets import load_recipe
    from pipeline.run.build import build

    root = tmp_path_factory.mktemp("real")
    (root / "clips").mkdir()
    for name in CLIPS:
        shutil.copy(Path(str(DATA), "clips", f"{name}.mp4"), root / "clips")
    (root / "preset.yaml").write_text(yaml.safe_dump(PRESET))
    cache = root / "cache"
    import_clips(cache, root / "clips", "real", "folder")
    recipe = load_recipe(str(root / "preset.yaml"), Path(str(DATA), "landmarks"))
    result = build(cache, "real", recipe, ("segment", "regions"))
    assert (result.clips.done, result.clips.manifest) == (4, 4)
    return cache


@needs_data
@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize(
    ("region", "joints"), [("head", [0]), ("upper_limb", [15, 16]), ("lower_limb", [27, 28])]
)
def test_joints_of_real_people_lie_in_their_regions(
    real_cache: Path, name: str, region: str, joints: list[int]
) -> None:
    from pipeline.store.reader import Cache

    cache = Cache(real_cache)
    stages = cache.builds("real")["stages"]
    keys = cache.clip_keys("real")
    (key,) = (keys[clip_id] for clip_id in keys if clip_id.endswith(name))
    box = cache.stage("regions", stages["regions"]).read(key, "box")[:, REGIONS.index(region)]
    maps = region_map(cache.stage("segment", stages["segment"]).read(key, "labels"), load_parts().regions)
    with np.load(Path(str(DATA), "landmarks", f"{name}.npz")) as file:
        pose = file["pose"]
    inside, on_mask = [], []
    for frame, joint in np.ndindex(len(pose), len(joints)):
        x, y = pose[frame, joints[joint], :2]
        x1, y1, x2, y2 = box[frame]
        inside.append(x1 <= x <= x2 and y1 <= y <= y2)
        on_mask.append(at(maps[frame], (x, y)) == REGIONS.index(region) + 1)
    assert np.mean(inside) >= 0.98
    if region != "head":  # the nose of someone whose hand is before the face is no head
        assert np.mean(on_mask) >= 0.98


@needs_data
@pytest.mark.slow
@pytest.mark.skipif(
    mediapipe_process.PYTHON not in os.environ, reason="BMOE_MEDIAPIPE_PYTHON names no Python with mediapipe"
)
def test_mediapipe_finds_what_the_stored_files_hold() -> None:
    from pipeline.decode import DecodeJob, DecodePool, Frames

    path = Path(str(DATA), "clips", "ma52_nodding.mp4")
    with DecodePool(1) as pool:
        ((_, decoded),) = pool.decode([DecodeJob("nod", path)])
    assert isinstance(decoded, Frames)
    index = np.arange(0, 10)
    held = MediapipeProcess()(make_task(), torch.from_numpy(decoded.array), index)
    with np.load(Path(str(DATA), "landmarks", "ma52_nodding.npz")) as file:
        stored = Landmarks(*(file[name][index] for name in ARRAYS))
    shown = stored.pose[:, :, 3] > 0.5
    away = np.abs(held.pose[:, :, :2] - stored.pose[:, :, :2]).max(-1)[shown]
    assert np.median(away) < 0.002
    assert away.max() < 0.05
    assert (np.abs(held.person.astype(int) - stored.person) < 64).mean() > 0.98
