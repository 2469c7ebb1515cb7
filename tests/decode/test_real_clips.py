"""Real and damaged clips; BMOE_DATA names the folder that holds clips/."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.decode import DecodeJob, DecodePool, Frames
from pipeline.encoders.preprocess import manet_indices

DATA = os.environ.get("BMOE_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="BMOE_DATA is unset: no real clips on this machine")

# name: (frames, height, width, decoder)
EXPECTED = {
    "crowd_street.mp4": (8, 1080, 1920, "decord"),
    "ma52_nodding.mp4": (50, 1296, 1080, "decord"),
    "ma52_shaking_body.mp4": (75, 1296, 1080, "decord"),
    "ma52_shaking_head.mp4": (45, 1296, 1080, "decord"),
    "ma52_turning_around.mp4": (60, 1296, 1080, "decord"),
    "mpeg4_vfr_face.avi": (164, 240, 320, "decord"),
    "ntu_drink_water.avi": (103, 1080, 1920, "decord"),
    "ntu_two_people_vfr.mp4": (72, 1080, 1920, "decord"),
    "odd_av1.mkv": (125, 360, 640, "pyav"),  # decord's FFmpeg has no AV1
    "odd_corrupted.mp4": (28, 720, 1280, "pyav"),
    "odd_h264_10bit.mp4": (30, 200, 200, "decord"),
    "odd_no_duration.webm": (74, 720, 1280, "pyav"),  # decord finds no frame count
    "odd_non_zero_start.mp4": (12, 112, 200, "decord"),
    "odd_rotated_90.mov": (3, 568, 320, "decord"),
    "odd_unordered.mov": (4, 50, 50, "decord"),
    "odd_vp9_321x241.mp4": (25, 241, 321, "decord"),
    "portrait_single_person.mp4": (40, 1920, 1080, "decord"),
}
WARNINGS = {
    "odd_corrupted.mp4": ["W_DAMAGED"],
    "odd_rotated_90.mov": ["W_ROTATION"],
    "odd_non_zero_start.mp4": ["W_START_OFFSET"],
    "ntu_two_people_vfr.mp4": ["W_VFR"],
}


@pytest.fixture(scope="module")
def clips() -> Path:
    return Path(DATA or "") / "clips"


def test_every_file_has_an_outcome(clips: Path) -> None:
    files = sorted(path for path in clips.rglob("*") if path.is_file())
    outcomes: dict[str, Any] = {}
    with DecodePool(2) as pool:
        for job, result in pool.decode(DecodeJob(path.name, path) for path in files):
            if isinstance(result, Frames):
                assert result.array.any()
                warnings = [warning.split(":")[0] for warning in result.warnings]
                outcomes[job.key] = (
                    (*result.array.shape[:3], result.decoder.split()[0]),
                    warnings,
                    result.warnings,
                )
            else:
                outcomes[job.key] = result.code, [], ()
    assert len(outcomes) == 32
    for name, expected in EXPECTED.items():
        assert outcomes[name][0] == expected, name
        assert outcomes[name][1] == WARNINGS.get(name, []), name
    assert outcomes["odd_1x1.mp4"][0] == "E_TOO_SMALL"
    assert outcomes["odd_corrupted.mp4"][2][0].startswith("W_DAMAGED: 28 of 50 frames decoded")
    signs = [
        outcome[0] for name, outcome in outcomes.items() if name.endswith(".mkv") and name != "odd_av1.mkv"
    ]
    assert len(signs) == 14
    assert all(sign[1:] == (480, 640, "decord") for sign in signs)


def test_few_frames_are_those_of_the_whole_clip(clips: Path) -> None:
    """Likely counts are wrong, so every file that decodes does so twice."""
    files = [clips / name for name in EXPECTED if name != "portrait_single_person.mp4"]
    with DecodePool(2) as pool:
        whole = pool.decode(DecodeJob(path.name, path) for path in files)
        jobs = (DecodeJob(path.name, path, only=manet_indices, frames=9) for path in files)
        for (job, frames), (_, few) in zip(whole, pool.decode(jobs), strict=True):
            assert isinstance(frames, Frames)
            assert isinstance(few, Frames)
            wanted = manet_indices(len(frames.array))
            assert np.array_equal(few.array[wanted], frames.array[wanted]), job.key
            assert (few.array.shape, few.decoder, few.warnings) == (
                frames.array.shape, frames.decoder, frames.warnings,
            )  # fmt: skip


@pytest.mark.parametrize("name", ["odd_rotated_90.mov", "odd_non_zero_start.mp4", "ma52_nodding.mp4"])
def test_decoders_agree_on_real_clips(clips: Path, name: str) -> None:
    results = []
    for backend in ("decord", "pyav"):
        with DecodePool(1, backends=(backend,)) as pool:
            [(_, result)] = pool.decode([DecodeJob(name, clips / name)])
            assert isinstance(result, Frames)
            results.append(result.array)
    assert np.array_equal(results[0], results[1])


@pytest.mark.parametrize(
    "name",
    [
        "asl/again.mkv",
        "ma52_nodding.mp4",
        "mpeg4_vfr_face.avi",
        "ntu_two_people_vfr.mp4",
        "odd_av1.mkv",
        "odd_h264_10bit.mp4",
        "odd_no_duration.webm",
        "odd_non_zero_start.mp4",
        "odd_rotated_90.mov",
        "odd_unordered.mov",
        "odd_vp9_321x241.mp4",
    ],
)
def test_intervals_equal_the_whole_clip(clips: Path, name: str) -> None:
    with DecodePool(1, backends=("pyav",)) as pool:
        [(_, whole)] = pool.decode([DecodeJob(name, clips / name)])
        assert isinstance(whole, Frames)
        count = len(whole.array)
        starts = (1, count // 2, count * 3 // 4, count - 2)
        for job, part in pool.decode(DecodeJob(name, clips / name, None, low, low + 2) for low in starts):
            assert isinstance(part, Frames)
            assert np.array_equal(part.array, whole.array[job.start_frame : job.end_frame]), job
