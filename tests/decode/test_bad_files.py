"""Damaged and foreign files end as ClipError or as a stated part of the clip, never as a whole one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.decode import DecodeJob, DecodePool, Frames
from tests.decode.clips import numbers, packets, write_sound, write_video

FRAMES = 40
Intact = dict[str, tuple[Path, np.ndarray]]


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(1) as pool:
        yield pool


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory, pool: DecodePool) -> Intact:
    """{container: (file, its frames)}; most of the picture is noise, so packets are large."""
    folder = tmp_path_factory.mktemp("intact")
    faststart = {"movflags": "faststart"}
    files = {
        "index at end": write_video(folder / "end.mp4", noise=True),
        "index in front": write_video(folder / "front.mp4", noise=True, container_options=faststart),
        "mkv": write_video(folder / "clip.mkv", noise=True),
        "avi": write_video(folder / "clip.avi", codec="mpeg4", noise=True),
    }
    return {name: (path, decode(pool, path).array) for name, path in files.items()}


def decode(
    pool: DecodePool, path: Path, start: int | None = None, end: int | None = None, stream: int | None = None
) -> Any:
    [(_, result)] = pool.decode([DecodeJob("clip", path, stream, start, end)])
    return result


def damaged(result: Any) -> bool:
    return any(warning.startswith("W_DAMAGED") for warning in result.warnings)


@pytest.mark.parametrize("name", ["index in front", "mkv", "avi"])
def test_half_a_file_keeps_its_prefix(pool: DecodePool, intact: Intact, tmp_path: Path, name: str) -> None:
    path, whole = intact[name]
    half = tmp_path / path.name
    half.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = decode(pool, half)
    assert damaged(result)
    assert 8 < len(result.array) < 32
    assert np.array_equal(result.array, whole[: len(result.array)])
    stated = f"{len(result.array)} of {'at least ' if name == 'mkv' else FRAMES}"
    assert stated in result.warnings[0]


def test_half_a_file_without_its_index(pool: DecodePool, intact: Intact, tmp_path: Path) -> None:
    path, _ = intact["index at end"]
    half = tmp_path / "half.mp4"
    half.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = decode(pool, half)
    assert (result.code, result.decoder, result.attempts) == ("E_NOT_A_VIDEO", None, 0)
    assert "moov atom not found" in result.message


def spoiled(path: Path, target: Path, packet: int, first: float, last: float) -> Path:
    """A copy of path with bytes first to last - 1 (shares of its size) of one packet inverted."""
    data = bytearray(path.read_bytes())
    position, size = packets(path)[packet]
    for offset in range(position + int(first * size), position + int(last * size)):
        data[offset] ^= 0xFF
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("name", ["index at end", "mkv", "avi"])
@pytest.mark.parametrize("packet", [10, 25])
def test_spoiled_packet_ends_the_clip(
    pool: DecodePool, intact: Intact, tmp_path: Path, name: str, packet: int
) -> None:
    path, whole = intact[name]
    broken = spoiled(path, tmp_path / path.name, packet, 0, 0.5)
    result = decode(pool, broken)
    assert damaged(result)
    assert packet - 4 <= len(result.array) <= packet  # B-frames: file order is not display order
    assert np.array_equal(result.array, whole[: len(result.array)])
    before = decode(pool, broken, 2, 6)
    assert np.array_equal(before.array, whole[2:6])
    assert not damaged(before)
    spoilt = len(result.array)
    after = decode(pool, broken, spoilt, spoilt + 1)
    assert after.code == "E_DECODE"
    assert (after.decoder or "").startswith("pyav")
    assert after.attempts >= 1
    if name == "index at end":  # the others have no index: container damaged as well, stamps not trusted
        assert np.array_equal(decode(pool, broken, 37, 40).array, whole[37:40])  # behind the next key frame


@pytest.mark.parametrize("name", ["index at end", "avi"])
def test_damage_decord_returns_without_an_error(
    pool: DecodePool, intact: Intact, tmp_path: Path, name: str
) -> None:
    """Bytes inverted in the middle of a packet: decord gives all frames. What it logs finds most of them."""
    path, whole = intact[name]
    jobs = []
    for packet in range(4, 36, 2):
        copy = spoiled(path, tmp_path / f"{packet}{path.suffix}", packet, 0.5, 0.6)
        jobs.append(DecodeJob(str(packet), copy))
    reported = 0
    for job, result in pool.decode(jobs):
        if damaged(result):
            reported += 1
            assert isinstance(result, Frames)
            assert np.array_equal(result.array, whole[: len(result.array)]), job
    assert reported >= 10  # of 16


def test_no_frame_decodes(pool: DecodePool, intact: Intact, tmp_path: Path) -> None:
    path, _ = intact["index at end"]
    data = bytearray(path.read_bytes())
    for position, size in packets(path):
        data[position : position + size] = bytes(size)
    broken = tmp_path / "zeros.mp4"
    broken.write_bytes(data)
    result = decode(pool, broken)
    assert result.code == "E_DECODE"
    assert "0 of 40 frames" in result.message


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("missing.mp4", "E_MISSING_FILE"),
        ("folder.mp4", "E_NOT_A_FILE"),
        ("empty.mp4", "E_EMPTY_FILE"),
        ("text.mp4", "E_NOT_A_VIDEO"),
        ("text.txt", "E_NOT_A_VIDEO"),
        ("playlist.mp4", "E_NOT_A_VIDEO"),
        ("playlist.m3u8", "E_NOT_A_VIDEO"),
        ("sound.wav", "E_NO_VIDEO_STREAM"),
        ("sound.m4a", "E_NO_VIDEO_STREAM"),
        ("tiny.mp4", "E_TOO_SMALL"),
    ],
)
def test_foreign_files(pool: DecodePool, tmp_path: Path, name: str, code: str) -> None:
    path = tmp_path / name
    if name.startswith("folder"):
        path.mkdir()
    elif name.startswith("empty"):
        path.touch()
    elif name.startswith("text"):
        path.write_text("this is a note\n" * 50)
    elif name.startswith("playlist"):
        target = write_video(tmp_path / "secret.ts", frames=5)
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target.name}\n#EXT-X-ENDLIST\n")
    elif name.startswith("sound"):
        write_sound(path)
    elif name.startswith("tiny"):
        write_video(path, frames=3, size=(64, 14))
    result = decode(pool, path)
    assert result.code == code
    assert str(path) in result.message
    assert "\n" not in result.message


def test_wanted_stream(pool: DecodePool, intact: Intact) -> None:
    path, whole = intact["mkv"]
    assert np.array_equal(decode(pool, path, stream=0).array, whole)
    missing = decode(pool, path, stream=3)
    assert missing.code == "E_NO_VIDEO_STREAM"
    assert "video streams: 0" in missing.message


def test_time_stamps_that_jump_are_named(pool: DecodePool, tmp_path: Path) -> None:
    import av

    path = tmp_path / "vfr.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(12):
            frame = av.VideoFrame(96, 64, "yuv420p")
            frame.pts = 50 + number + (30 if number > 5 else 0)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    result = decode(pool, path)
    assert isinstance(result, Frames)
    assert [warning.split(":")[0] for warning in result.warnings] == ["W_VFR", "W_START_OFFSET"]
    assert len(numbers(result.array)) == 12
