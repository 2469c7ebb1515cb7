"""Deep validation: clips against what their files really hold, and results that outlive a killed run."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.clip import Clip
from pipeline.events import Event, silent
from pipeline.manifest import Manifest, manifest_path, write_manifest
from pipeline.run import deep
from pipeline.store.layout import init_cache
from pipeline.taxonomy import from_labels
from tests.decode.clips import packets, write_sound, write_video

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
    wanted = {f"case-{number:02d}": [code] for number, (_, code) in enumerate(CASES) if code}
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
