"""Intervals decode by seeking: the same frames as a full decode, and no more work than the interval asks for."""

import gc
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decode import DecodeJob, DecodePool, Frames, worker
from pipeline.decode.backends import REORDER, pyav_frames
from pipeline.decode.index import KEPT, Packet, index_frames, load_index, save_index
from pipeline.decode.probe import probe
from pipeline.decode.process import shared_room
from tests.decode.clips import repeat, write_video
from tests.decode.recordings import FILES, FRAMES, GOP, moving, write_recordings


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(1) as pool:
        yield pool


@pytest.fixture(scope="module")
def decord() -> Iterator[DecodePool]:
    with DecodePool(1, backends=("decord",)) as pool:
        yield pool


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory, pool: DecodePool) -> dict[str, tuple[Path, np.ndarray]]:
    """Name -> (file, all its frames)."""
    found = {}
    for name, path in write_recordings(tmp_path_factory.mktemp("recordings")).items():
        result = decode(pool, path)
        assert len(result.array) == FRAMES
        found[name] = path, result.array
    assert len(found) >= 10
    return found


def decode(pool: DecodePool, path: Path, start: int | None = None, end: int | None = None) -> Any:
    [(_, result)] = pool.decode([DecodeJob("clip", path, None, start, end)])
    return result


@settings(max_examples=60)
@given(name=st.sampled_from(sorted(FILES)), start=st.integers(0, FRAMES - 1), length=st.integers(1, 30))
def test_every_interval_equals_the_full_decode(
    wholes: dict[str, tuple[Path, np.ndarray]], pool: DecodePool, name: str, start: int, length: int
) -> None:
    if name not in wholes:
        return
    path, whole = wholes[name]
    end = min(start + length, FRAMES)
    result = decode(pool, path, start, end)
    assert isinstance(result, Frames)
    assert np.array_equal(result.array, whole[start:end])


@pytest.mark.skipif(find_spec("decord") is None, reason="decord has no wheel for this machine")
@settings(max_examples=60)
@given(
    name=st.sampled_from(sorted(set(FILES) - {"stream.ts"})),  # decord refuses it
    few=st.sets(st.integers(0, FRAMES - 1), min_size=1, max_size=8).map(sorted),
)
def test_frames_between_skipped_ones_are_those_of_the_full_decode(
    wholes: dict[str, tuple[Path, np.ndarray]], decord: DecodePool, name: str, few: list[int]
) -> None:
    if name not in wholes:
        return
    path, whole = wholes[name]
    [(_, result)] = decord.decode([DecodeJob("few", path, only=lambda _: np.array(few), frames=FRAMES)])
    assert isinstance(result, Frames)
    assert len(result.array) == FRAMES
    assert np.array_equal(result.array[np.array(few)], whole[few])


@pytest.mark.parametrize("name", [name for name, (_, sure) in FILES.items() if sure])
def test_an_interval_costs_itself_and_a_group(
    wholes: dict[str, tuple[Path, np.ndarray]], pool: DecodePool, name: str
) -> None:
    if name not in wholes:
        pytest.skip("this PyAV has no encoder for it")
    path, _ = wholes[name]
    index = probe(path).index
    assert index is not None
    longest = int(np.diff([*index.keys, FRAMES]).max())
    assert longest < FRAMES  # else there is nothing to seek to
    for start in range(0, FRAMES - 3, 5):
        result = decode(pool, path, start, start + 3)
        assert result.decoder.startswith("pyav")
        assert result.decoded <= longest + 3 + REORDER + 4  # 4: leading pictures of an open group


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 minutes at 25 frames/s, the same 4 seconds again and again; a key frame every 12 frames."""
    folder = tmp_path_factory.mktemp("long")
    part = write_video(folder / "part.mp4", 100, draw=moving)
    return repeat(part, folder / "recording.mp4", 300)


def test_a_long_recording_is_not_decoded_up_to_the_interval(recording: Path, tmp_path: Path) -> None:
    with DecodePool(2, index=tmp_path / "index") as pool:
        [(_, part)] = pool.decode([DecodeJob("part", recording.with_name("part.mp4"))])
        assert isinstance(part, Frames)
        spans = [(start, start + 64) for start in (0, 13, 5_000, 15_005, 29_900, 29_936)]
        for job, result in pool.decode(DecodeJob("", recording, None, *span) for span in spans):
            assert isinstance(result, Frames), job
            shown = np.arange(job.start_frame or 0, job.end_frame or 0) % 100
            assert np.array_equal(result.array, part.array[shown]), job
            assert result.decoded <= GOP + 64 + REORDER
    kept = list((tmp_path / "index").iterdir())
    assert len(kept) == 1  # of the recording; the short part is quicker passed over again
    assert kept[0].stat().st_size < 200_000


def test_a_recording_is_passed_over_once(recording: Path, tmp_path: Path) -> None:
    """The next pool reads what the first one kept: shown by a mark in it. A file changed meanwhile is another."""
    folder = tmp_path / "index"
    touched = Path(shutil.copy(recording, tmp_path / "touched.mp4"))
    with DecodePool(1, index=folder) as pool:
        for path in (recording, touched):
            assert decode(pool, path, 20_000, 20_003).warnings == ()
    for kept in folder.iterdir():
        facts = load_index(kept)
        assert facts is not None
        save_index(kept, replace(facts, warnings=("W_MARK: kept",)))
    os.utime(touched)
    with DecodePool(1, index=folder) as pool:
        assert decode(pool, recording, 20_000, 20_003).warnings == ("W_MARK: kept",)
        assert decode(pool, touched, 20_000, 20_003).warnings == ()


@pytest.mark.parametrize("name", ["long.avi", pytest.param("long.ts", marks=pytest.mark.slow)])
def test_a_long_recording_without_trusted_time_stamps_is_numbered_by_one_decode(
    tmp_path: Path, name: str
) -> None:
    path = write_video(tmp_path / name, KEPT + 50, draw=moving)
    facts = probe(path)
    assert facts.index is None
    whole = [step for step in pyav_frames(path, facts, 0, None) if isinstance(step, np.ndarray)]
    with DecodePool(1, index=tmp_path / "index") as pool:
        for start in (3, 700, 1_501, KEPT + 46):
            result = decode(pool, path, start, start + 4)
            assert np.array_equal(result.array, whole[start : start + 4])
            assert result.decoded <= 2 * GOP + 4 + REORDER
    [kept] = (tmp_path / "index").iterdir()
    assert load_index(kept)


def test_a_damaged_index_is_made_again(recording: Path, tmp_path: Path) -> None:
    file = tmp_path / "recording.index"
    facts = probe(recording)
    save_index(file, facts)
    loaded = load_index(file)
    assert loaded is not None
    assert loaded.index is not None
    assert facts.index is not None
    assert np.array_equal(loaded.index.pts, facts.index.pts)
    assert np.array_equal(loaded.index.keys, facts.index.keys)
    assert replace(loaded, index=None) == replace(facts, index=None)
    whole = file.read_bytes()
    for data in (b"", whole[:100], whole[: len(whole) // 2], bytes(len(whole)), b"PK" + whole[2:-9]):
        file.write_bytes(data)
        assert load_index(file) is None
    assert load_index(tmp_path / "none.index") is None


def test_a_worker_remembers_the_views_of_a_scene(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []

    def counting(path: Path, *arguments: Any) -> Any:
        passes.append(path)
        return probe(path, *arguments)

    monkeypatch.setattr(worker, "probe", counting)
    facts_of = worker._remembering(lambda: None)
    part = recording.with_name("part.mp4")
    for _ in range(5):
        for path in (recording, part):
            facts_of(path, None, None)
    assert sorted(passes) == sorted([recording, part])


def test_damage_elsewhere_costs_nothing(recording: Path, tmp_path: Path) -> None:
    """A spoiled second in a long recording spoils the clips that show it, not the ones behind it."""
    broken = Path(shutil.copy(recording, tmp_path / "broken.mp4"))
    with av.open(str(broken)) as container:
        places = [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size]
    with broken.open("r+b") as file:
        for position, size in places[10_000:10_012]:
            file.seek(position)
            file.write(bytes(size))
    with DecodePool(1) as pool:
        assert decode(pool, broken, 10_001, 10_009).code == "E_DECODE"
        assert len(decode(pool, broken, 10_100, 10_110).array) == 10


def packets(*stamps: int | None, size: int = 100) -> list[Packet]:
    return [Packet(pts, pts, number % 3 == 0, size, True) for number, pts in enumerate(stamps)]


def test_index_numbers_frames_by_time_stamp() -> None:
    index = index_frames(packets(0, 4, 2, 8, 6, 10), "mov,mp4", "h264", True)
    assert index is not None
    assert [index.number(pts) for pts in (0, 2, 4, 6, 8, 10, 3, None)] == [0, 1, 2, 3, 4, 5, None, None]
    assert index.keys.tolist() == [0, 4]
    assert [index.entries(start) for start in (0, 3, 4, 5)] == [(), (), (4,), (4,)]


@pytest.mark.parametrize(
    ("stream", "container", "codec"),
    [
        (packets(0, 1, 1, 2), "mov,mp4", "h264"),  # a time stamp repeats
        (packets(0, None, 1, 2), "mov,mp4", "h264"),
        (packets(3, 1, 2, 4), "mov,mp4", "h264"),  # leading pictures in front of the first key frame
        (packets(0, 1, 2, 3), "mpegts", "h264"),
        (packets(0, 1, 2, 3), "matroska,webm", "vp8"),  # hidden frames are packets of their own
        (packets(0, 1, 2, 3, size=8), "avi", "mpeg4"),  # N-VOPs: packets without a frame
        ([*packets(0, 1, 2), Packet(3, 3, False, 100, False)], "mov,mp4", "h264"),  # an edit list
        ([], "mov,mp4", "h264"),
    ],
)
def test_no_index_where_numbers_would_not_be_sure(stream: list[Packet], container: str, codec: str) -> None:
    assert index_frames(stream, container, codec, False) is None


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="frames lie in memfds on Linux only")
def test_frames_are_shared_and_leave_nothing(recording: Path) -> None:
    """One descriptor per clip that is held, none afterwards; they outlive the worker that filled them."""

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    part = recording.with_name("part.mp4")
    empty = descriptors()
    with DecodePool(1) as pool:
        decode(pool, part)
        before = descriptors()
        held = [result for _, result in pool.decode(DecodeJob(str(i), part) for i in range(5))]
        assert descriptors() == before + 5
        pool._all[0].kill()
        first = held[0]
        assert isinstance(first, Frames)
        assert all(isinstance(other, Frames) and np.array_equal(other.array, first.array) for other in held)
        del first
        held.clear()
        decode(pool, part)
        assert descriptors() == before
    assert descriptors() == empty


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="frames lie in memfds on Linux only")
def test_a_worker_cannot_shrink_what_the_parent_maps() -> None:
    freed: list[bool] = []
    descriptor, array = shared_room((2, 16, 16, 3), lambda: freed.append(True))
    for size in (0, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    os.close(descriptor)
    array += 1  # torch takes it without a copy only when it may write
    assert array.sum() == 2 * 16 * 16 * 3
    assert not freed
    del array
    gc.collect()
    assert freed == [True]
