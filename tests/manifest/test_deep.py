"""Deep validation: clips against what their files really hold, and results that outlive a killed run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.clip import Clip
from pipeline.decode import DecodeJob, DecodePool
from pipeline.events import Event, silent
from pipeline.manifest import Manifest, manifest_path, read_manifest, write_manifest
from pipeline.run import deep
from pipeline.run.build import read_files
from pipeline.store.layout import init_cache
from pipeline.taxonomy import from_labels
from tests.decode.clips import packets, remux, write_sound, write_video
from tests.skeletons.files import write_ntu

TAXONOMY = from_labels("tiny", ["nod", "wave"])
FRAMES = 40
GOOD = Clip("tiny:train:a", "tiny", "0.mp4", split="train", label_space="tiny2", label_kind="single")


CASES: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"end_frame": FRAMES}, None),
    ({"end_frame": FRAMES + 1}, "W_END_PAST_EOF"),
    ({"end_frame": FRAMES + 2}, "E_END_PAST_EOF"),
    ({"start_frame": FRAMES}, "E_END_PAST_EOF"),
    ({"fps_num": 25, "fps_den": 1, "n_frames": FRAMES, "width": 96, "height": 64}, None),
    ({"fps_num": 28, "fps_den": 1}, "W_FPS_MISMATCH"),
    ({"n_frames": FRAMES + 1}, "W_HEADER_COUNT"),
    ({"width": 64, "height": 96}, "W_FRAME_SIZE"),
    ({"extra": '{"declared_duration_s":2.5}'}, None),
    ({"extra": '{"declared_duration_s":9.5}'}, "W_DURATION_DECLARED"),
    ({"media_sha256": "0" * 64}, "E_HASH_MISMATCH"),
    ({"bbox_track": ((0, 0.0, 0.0, 96.0, 64.0),)}, None),
    ({"bbox_track": ((0, 0.0, 0.0, 97.0, 64.0),)}, "W_BBOX_CLIPPED"),
    ({"bbox_track": ((0, 96.0, 0.0, 120.0, 64.0),)}, "E_BBOX_OUTSIDE"),
    ({"stream_index": 5}, "E_NO_VIDEO_STREAM"),
    ({"video_path": "turned.mp4"}, "W_ROTATION"),
    ({"video_path": "small.mp4"}, "E_TOO_SMALL"),
    ({"video_path": "sound.wav"}, "E_NO_VIDEO_STREAM"),
    ({"video_path": "gone.mp4"}, "E_MISSING_FILE"),
    ({"video_path": "damaged.mp4"}, "W_DAMAGED"),
    ({"video_path": "damaged.mp4", "end_frame": 12}, None),
    ({"video_path": "damaged.mp4", "start_frame": 36}, "E_DECODE"),
    ({"video_path": "note.mp4"}, "E_NOT_A_VIDEO"),
    ({"video_path": "varying.mp4"}, "W_VFR"),
    ({"video_path": "late.mp4"}, "W_START_OFFSET"),
    ({"video_path": "wide.mp4"}, "W_SAR"),
    ({"video_path": "two.mp4"}, "W_MULTI_VIDEO_STREAM"),
    ({"video_path": "two.mp4", "stream_index": 1}, None),
    ({"video_path": "endless.mkv"}, "W_NO_DURATION"),
    ({"video_path": "back.mkv"}, "W_PTS_NON_MONOTONIC W_VFR"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(len(CASES)):  # 25 fps, 96x64, each with bytes of its own
        options = {"bf": "2", "g": "12", "threads": "1", "crf": str(10 + number)}
        write_video(folder / f"{number}.mp4", FRAMES, codec_options=options)
    (folder / "copy.mp4").write_bytes((folder / "0.mp4").read_bytes())
    write_video(folder / "turned.mp4", 6, rotation=90)
    write_video(folder / "small.mp4", 4, size=(14, 32))
    write_sound(folder / "sound.wav")
    (folder / "note.mp4").write_text("no video")
    write_video(folder / "varying.mp4", FRAMES, pts=lambda i: i + i * i // 7)
    write_video(folder / "late.mp4", FRAMES, pts=lambda i: i + 50)
    write_video(folder / "wide.mp4", FRAMES, aspect=Fraction(4, 3))
    write_video(folder / "two.mp4", FRAMES, streams=2)
    write_video(folder / "endless.mkv", FRAMES, container_options={"live": "1"})
    plain = write_video(folder / "plain.mp4", FRAMES, codec="mpeg4", codec_options={"g": "12"})
    remux(plain, folder / "back.mkv", twice=5)
    damaged = bytearray(write_video(folder / "damaged.mp4", FRAMES, noise=True).read_bytes())
    offset, size = packets(folder / "damaged.mp4")[25]
    damaged[offset + 4 : offset + size] = bytes(size - 4)
    (folder / "damaged.mp4").write_bytes(damaged)
    return folder


def problems(cache: Path, root: Path, *clips: Clip, events: list[Event] | None = None) -> list[deep.Problem]:
    init_cache(cache)
    manifest = Manifest("tiny", root, TAXONOMY, clips)
    write_manifest(manifest, manifest_path(cache, "tiny"))
    return list(deep.deep_problems(cache, manifest, 1, silent if events is None else events.append))


def test_one_fault_one_problem(tmp_path: Path, root: Path) -> None:
    clips = [
        replace(GOOD, **{"clip_id": f"case-{number:02d}", "video_path": f"{number}.mp4", **values})
        for number, (values, _) in enumerate(CASES)
    ]
    found: dict[str, list[str]] = {}
    for one in problems(tmp_path, root, *clips):
        code, where, clip_id, _ = one.message.split(" ", 3)
        assert (code, where.split(":")[0]) == (one.code, "tiny"), one.message
        found.setdefault(clip_id.rstrip(":"), []).append(code)
    wanted = {f"case-{number:02d}": codes.split() for number, (_, codes) in enumerate(CASES) if codes}
    assert found == wanted


def test_one_content_in_two_splits(tmp_path: Path, root: Path) -> None:
    twin = replace(GOOD, clip_id="tiny:val:copy", video_path="copy.mp4", split="val")
    events: list[Event] = []
    found = problems(tmp_path, root, GOOD, twin, events=events)
    assert [one.code for one in found] == ["W_DUP_CONTENT", "E_SPLIT_LEAK_CONTENT"]
    assert [event.total for event in events if event.stage == "decoding"] == [1]  # one content, one decode
    elsewhere = problems(tmp_path, root, GOOD, replace(twin, start_frame=20))
    assert [one.code for one in elsewhere] == ["W_DUP_CONTENT"]


def test_files_are_named_once_however_many_clips_they_have(tmp_path: Path, root: Path) -> None:
    clips = [replace(GOOD, clip_id=f"c{i}", video_path="turned.mp4", end_frame=i + 1) for i in range(4)]
    assert [one.code for one in problems(tmp_path, root, *clips)] == ["W_ROTATION"]


def decoded(events: list[Event]) -> int:
    return max((event.done for event in events if event.stage == "decoding"), default=0)


def test_results_are_kept_by_content(tmp_path: Path, root: Path) -> None:
    clips = [replace(GOOD, clip_id=name, video_path=f"{name}.mp4") for name in ("0", "turned", "damaged")]
    first: list[Event] = []
    report = problems(tmp_path, root, *clips, events=first)
    again: list[Event] = []
    assert problems(tmp_path, root, *clips, events=again) == report
    assert (decoded(first), decoded(again)) == (3, 0)
    path = manifest_path(tmp_path, "tiny").with_suffix(".checked.jsonl")
    lines = path.read_text().split("\n")
    kept = [line for line in lines if line]
    path.write_text(
        "\n".join([*kept[:1], "not json", '{"version": 1}', kept[1].replace("pyav", "other"), kept[2][:90]])
    )
    resumed: list[Event] = []
    assert problems(tmp_path, root, *clips, events=resumed) == report
    assert decoded(resumed) == 2


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    videos, cache = tmp_path / "videos", tmp_path / "cache"
    videos.mkdir()
    for i in range(4):
        write_video(videos / f"{i}.mp4", 30 + i, size=(320, 240), noise=True)
    clips = [replace(GOOD, clip_id=f"c{i}", video_path=f"{i}.mp4") for i in range(4)]
    init_cache(cache)
    write_manifest(Manifest("tiny", videos, TAXONOMY, tuple(clips)), manifest_path(cache, "tiny"))
    words = ["dataset", "validate", "tiny", "--deep", "--decoders", "1", "--cache", str(cache)]
    running = subprocess.Popen(
        [sys.executable, "-c", "import cli; cli.app()", *words], stdout=subprocess.DEVNULL
    )
    path = manifest_path(cache, "tiny").with_suffix(".checked.jsonl")
    deadline = time.monotonic() + 60
    while not (path.is_file() and '"whole"' in path.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    kept = path.read_text().count('"whole"')
    assert kept >= 1
    events: list[Event] = []
    assert problems(cache, videos, *clips, events=events) == []
    assert decoded(events) == 4 - kept


def test_skeletons_are_held_against_their_files(tmp_path: Path) -> None:
    """Every code of skeletons, each once, and none for a sound file."""
    root = tmp_path / "root"
    root.mkdir()
    xyz = write_ntu(root / "good.skeleton")
    text = (root / "good.skeleton").read_text()
    (root / "cut.skeleton").write_text(text[: len(text) // 2])
    (root / "twenty.skeleton").write_text(text.replace("\n25\n", "\n20\n"))
    (root / "nobody.skeleton").write_text("2\n0\n0\n")
    (root / "words.skeleton").write_text(text.replace("\n25\n", "\nmany\n"))
    np.savez(root / "objects.npz", xyz=np.array([{}], object))
    write_video(root / "a.mp4", FRAMES)
    ntu = {"video_path": None, "modality": "skeleton", "skeleton_format": "ntu_skeleton"}
    cases: list[tuple[dict[str, Any], str | None]] = [
        ({"skeleton_path": "good.skeleton"}, None),
        ({"skeleton_path": "good.skeleton", "person_id": "77"}, "E_SKEL_PERSON"),
        ({"skeleton_path": "good.skeleton", "end_frame": len(xyz) + 2}, "E_END_PAST_EOF"),
        ({"skeleton_path": "cut.skeleton"}, "E_SKEL_TRUNCATED"),
        ({"skeleton_path": "twenty.skeleton"}, "E_SKEL_JOINTCOUNT"),
        ({"skeleton_path": "nobody.skeleton"}, "E_SKEL_EMPTY"),
        ({"skeleton_path": "words.skeleton"}, "E_SKEL_VALUE"),
        ({"skeleton_path": "objects.npz", "skeleton_format": "ucla_npz"}, "E_PICKLE_UNSAFE"),
        ({"skeleton_path": "a.pkl", "skeleton_format": "mmaction_pkl"}, "E_MISSING_FILE"),
        ({"skeleton_path": "a.mp4", "skeleton_format": "smg_csv"}, "E_SKEL_FORMAT"),
        ({"skeleton_path": "a.csv", "skeleton_format": "smg_csv", "video_path": "a.mp4"}, "W_SKEL_FORMAT"),
    ]
    (root / "a.csv").write_text("0\n")
    clips = [
        replace(GOOD, clip_id=f"case-{i:02d}", **{**ntu, **values}) for i, (values, _) in enumerate(cases)
    ]
    found = {
        one.message.split(" ")[2].rstrip(":"): one.code for one in problems(tmp_path / "c", root, *clips)
    }
    assert found == {f"case-{i:02d}": code for i, (_, code) in enumerate(cases) if code}


def test_a_recording_is_hashed_probed_and_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many clips it has, whichever command asks first, and whoever asks again."""
    from pipeline import media as media_module

    root, cache = tmp_path / "root", tmp_path / "cache"
    root.mkdir()
    for name in ("one.mp4", "two.mp4"):
        write_video(root / name, 60, noise=name == "one.mp4")
    hashed: list[str] = []
    probed: list[str] = []
    hash_file, probe_files = media_module.sha256_file, DecodePool.probe

    def counting_hash(path: Path) -> str:
        hashed.append(path.name)
        return hash_file(path)

    def counting_probe(pool: DecodePool, jobs: Iterable[DecodeJob]) -> Any:
        jobs = list(jobs)
        probed.extend(job.path.name for job in jobs)
        return probe_files(pool, jobs)

    monkeypatch.setattr(media_module, "sha256_file", counting_hash)
    monkeypatch.setattr(DecodePool, "probe", counting_probe)
    clips = [
        replace(GOOD, clip_id=f"{name[:3]}-{start}", video_path=name, start_frame=start, end_frame=start + 16)
        for name in ("one.mp4", "two.mp4")
        for start in range(0, 44)
    ]
    events: list[Event] = []
    assert problems(cache, root, *clips, events=events) == []
    assert decoded(events) == 2
    read_files(cache, read_manifest(manifest_path(cache, "tiny")), silent)  # what plan and build do first
    assert problems(cache, root, *clips) == []
    assert sorted(hashed) == sorted(probed) == ["one.mp4", "two.mp4"]
