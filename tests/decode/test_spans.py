"""Clips without room in memory: the same frames, decoded again where they are looked at, and bounded memory."""

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.decode import DecodeJob, DecodePool
from pipeline.decode.room import Room
from pipeline.decode.spans import SpanFrames
from pipeline.errors import ClipError
from tests.decode.clips import numbers, write_video
from tests.decode.recordings import write_recordings

FRAME = 64 * 96 * 3
TIGHT = 25 * FRAME  # room for clips of 5 frames, spans of 1


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_recordings(tmp_path_factory.mktemp("recordings"))


def test_spans_are_the_frames_of_the_whole(recordings: dict[str, Path]) -> None:
    jobs = [DecodeJob(name, path) for name, path in recordings.items()]
    jobs += [
        DecodeJob(f"{name} part", path, None, 20, 61, (8, 4, 80, 60)) for name, path in recordings.items()
    ]
    with DecodePool(2) as plenty, DecodePool(2, memory=5 * TIGHT) as tight:
        for (job, whole), (_, spans) in zip(plenty.decode(jobs), tight.decode(jobs), strict=True):
            assert not isinstance(whole, ClipError)
            assert not isinstance(spans, ClipError)
            assert isinstance(whole.array, np.ndarray)
            assert isinstance(spans.array, SpanFrames)
            count = len(whole.array)
            assert (spans.array.shape, spans.decoder, spans.warnings) == (
                whole.array.shape, whole.decoder, whole.warnings,
            ), job.key  # fmt: skip
            for index in (
                slice(0, 9),
                slice(4, 23),  # goes on, from inside the span that is here
                np.array([1, 2, count - 1]),  # back, and far ahead
                slice(None),
                count // 2,
            ):
                assert np.array_equal(spans.array[index], whole.array[index]), (job.key, index)
            spans.array.drop()


@pytest.fixture(scope="module")
def tight(recordings: dict[str, Path]) -> tuple[SpanFrames, np.ndarray]:
    pool = DecodePool(1, memory=40 * FRAME)  # spans of 1 frame, and 2 of them
    job = DecodeJob("b.mp4", recordings["b.mp4"], None, 3, 67)
    [(_, spans)] = pool.decode([job])
    with DecodePool(1) as plenty:
        [(_, whole)] = plenty.decode([job])
    assert not isinstance(spans, ClipError)
    assert not isinstance(whole, ClipError)
    assert isinstance(spans.array, SpanFrames)
    assert isinstance(whole.array, np.ndarray)
    return spans.array, whole.array


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 63), max_size=12))
def test_any_order_gives_the_right_frames(tight: tuple[SpanFrames, np.ndarray], wanted: list[int]) -> None:
    spans, whole = tight
    index = np.array(wanted, np.int64)
    assert np.array_equal(spans[index], whole[index])


def test_frames_that_fail_later_refuse_the_clip(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4")
    with DecodePool(1, memory=TIGHT) as pool:
        [(_, result)] = pool.decode([DecodeJob("a", path)])
        assert not isinstance(result, ClipError)
        frames = result.array
        assert isinstance(frames, SpanFrames)
        assert numbers(frames[:3]) == [0, 1, 2]
        frames.drop()
        path.write_bytes(path.read_bytes()[:2000])
        assert (frames[:3] == 0).all()
        assert frames.error is not None
        assert frames.error.code == "E_NO_VIDEO_STREAM"


def test_a_killed_span_worker_starts_again(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4")
    with DecodePool(1, memory=TIGHT) as pool:
        [(_, result)] = pool.decode([DecodeJob("a", path)])
        assert not isinstance(result, ClipError)
        frames = result.array
        assert isinstance(frames, SpanFrames)
        for low in (0, 10, 20):
            assert numbers(frames[low : low + 3]) == [low, low + 1, low + 2]
            (reader,) = pool._spans._readers
            assert reader._worker.process is not None
            reader._worker.process.kill()


def test_small_clips_wait_for_room_and_never_pass_it(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", frames=20)
    limit = 90 * FRAME  # 4 clips of 20 frames
    with DecodePool(4, memory=limit * 5 // 4) as pool:
        held = []
        most = 0
        for _, result in pool.decode(DecodeJob(str(i), path) for i in range(16)):
            assert not isinstance(result, ClipError)
            most = max(most, pool._room.held)
            assert isinstance(result.array, np.ndarray) or len(held) == 4
            assert numbers(result.array[:]) == list(range(20))
            held.append(result)
            if len(held) == 5:  # the caller holds all the room and one more
                held.clear()
            del result
        assert 0 < most <= limit
        held.clear()
    assert pool._room.held == 0


def test_room_is_given_in_order() -> None:
    room = Room(40)
    for number in range(3):
        room.enter(number)
    given: list[int] = []

    def take(number: int) -> None:
        assert room.take(number, 10) is not None
        given.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in (2, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(given) == [0, 1, 2]
    assert room.held == 30
    room.enter(3)
    room.want(3)
    assert room.take(3, 11) is None  # above a 4th of the room
    room.enter(4)
    assert room.take(4, 10) is not None
    room.enter(5)
    room.want(5)
    assert room.take(5, 10) is None  # the caller holds all of it, and waits
