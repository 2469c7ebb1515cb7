"""An interval near the end of a 20-minute recording: by seeking, and by decoding up to it.

    python -m benchmarks.seek [--rounds N] [--out]

The same frames both ways, in this process, through PyAV. Beside the ratio: how many frames each way decoded; what
the index of the recording costs, once; for files of every kind how often decord's own seek_accurate and ours gave
another frame than a full decode; and what a decoded 1080x1296 frame costs the process that receives it.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import arguments, race, ratio, report
from pipeline.decode import DecodeJob, DecodePool, Frames
from pipeline.decode.backends import Outcome, pyav_frames
from pipeline.decode.probe import Probe, probe
from tests.decode.clips import repeat, write_video
from tests.decode.recordings import FRAMES, moving, write_recordings

SPAN = 64  # frames of the interval
TURNS = 300  # 4 seconds each


def main() -> None:
    options = arguments(__doc__, rounds=3).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recording = repeat(write_video(folder / "part.mp4", 100, draw=moving), folder / "long.mp4", TURNS)
        files = write_recordings(folder)
        began = time.perf_counter()
        facts = probe(recording)
        index_seconds = time.perf_counter() - began
        start = facts.packets - 100
        decoded = {}

        def through(name: str, facts: Probe) -> int:
            frames, outcome = take(recording, facts, start, start + SPAN)
            decoded[name] = outcome.decoded
            return len(frames)

        times = race(
            {
                "seeking": lambda: through("seeking", facts),
                "from_the_start": lambda: through("from_the_start", replace(facts, index=None)),
            },
            SPAN,
            options.rounds,
        )
        receiver_ms = round(received(folder), 4)
        wrong = {path.name: mistakes(path) for path in files.values()}
        measured = {
            "ratio": ratio(times["from_the_start"], times["seeking"]),
            "frames": SPAN,
            "seconds": {name: timing.record(SPAN) for name, timing in times.items()},
            "decoded": decoded,
            "index_seconds": round(index_seconds, 3),
            "index_frames": facts.packets,
            "wrong": wrong,
            "wrong_of": len(range(0, FRAMES, 3)),
            "receiver_ms_per_frame": receiver_ms,
        }
    report("seek", measured, options.out)


def take(path: Path, facts: Probe, start: int, end: int | None) -> tuple[list[np.ndarray], Outcome]:
    """The frames of an interval, and how the decoding ended."""
    frames: list[np.ndarray] = []
    steps = pyav_frames(path, facts, start, end)
    while True:
        try:
            step = next(steps)
        except StopIteration as ended:
            return frames, ended.value
        if isinstance(step, np.ndarray):
            frames.append(step)
        elif step is not None:
            frames.clear()


def mistakes(path: Path) -> dict[str, int]:
    """Starts, every third frame, at which decord's seek and ours do not give the frame of a full decode."""
    import decord  # late: its libvpx would take the place of PyAV's, which writes the files

    decord.logging.set_level(decord.logging.QUIET)
    facts = probe(path)
    starts = range(0, FRAMES, 3)
    ours, _ = take(path, replace(facts, index=None), 0, None)
    reader = decord.VideoReader(str(path), num_threads=1)
    theirs = [reader.next().asnumpy() for _ in range(len(reader))]
    reader = decord.VideoReader(str(path), num_threads=1)
    return {
        "decord": sum(not _same(_decord_at(reader, start), theirs, start) for start in starts),
        "ours": sum(not _same(take(path, facts, start, start + 1)[0][0], ours, start) for start in starts),
    }


def _decord_at(reader: Any, start: int) -> np.ndarray | None:
    reader.seek_accurate(start)
    try:
        frame: np.ndarray = reader.next().asnumpy()
    except StopIteration:
        return None
    return frame


def _same(frame: np.ndarray | None, whole: Sequence[np.ndarray], number: int) -> bool:
    return frame is not None and number < len(whole) and np.array_equal(frame, whole[number])


def received(folder: Path, clips: int = 4) -> float:
    """Milliseconds of this process's own time per frame of 1080x1296 that a decode worker hands over."""
    path = write_video(folder / "large.mp4", 20, size=(1080, 1296), draw=moving)
    with DecodePool(1) as pool:
        list(pool.decode([DecodeJob("warm", path)]))
        began, frames = time.process_time(), 0
        for _, result in pool.decode(DecodeJob(str(number), path) for number in range(clips)):
            assert isinstance(result, Frames)
            frames += len(result.array)
        return (time.process_time() - began) / frames * 1e3


if __name__ == "__main__":
    main()
