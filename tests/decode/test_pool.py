"""The pool keeps order and bounds, survives hung and crashed workers, and leaves nothing behind."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.decode import DecodeJob, DecodePool
from pipeline.errors import ClipError
from tests.decode.clips import numbers, write_video

ROOT = Path(__file__).resolve().parents[2]
FAKE = (sys.executable, str(Path(__file__).with_name("fake_worker.py")), str(ROOT))


Make = Callable[..., list[DecodeJob]]


def fake_command() -> tuple[str, ...]:
    return (*FAKE, str(os.getpid()))


def decode(pool: DecodePool, jobs: Iterable[DecodeJob]) -> dict[str, Any]:
    """Results by key, in the order they came. Any: what the tests read says whether Frames or a ClipError."""
    return {job.key: result for job, result in pool.decode(jobs)}


def alive(pid: int) -> bool:
    """Running, and no zombie that waits for its parent."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def pids(pool: DecodePool) -> list[int]:
    return [worker.process.pid for worker in pool._all if worker.process]


def traceless(seen: list[int]) -> bool:
    threads = [t for t in threading.enumerate() if t.name.startswith("decode")]
    return not threads and not any(Path(f"/proc/{pid}").exists() for pid in seen)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=20)


@pytest.fixture
def named(clip: Path, tmp_path: Path) -> Make:
    """Jobs on copies of the clip; the fake worker reads its cues from their names."""

    def make(*names: str) -> list[DecodeJob]:
        return [DecodeJob(name, Path(shutil.copy(clip, tmp_path / f"{name}.mp4"))) for name in names]

    return make


def test_order_is_that_of_the_jobs(named: Make) -> None:
    jobs = named("slow", "b", "slow-2", "c", "d")
    with DecodePool(2, command=fake_command()) as pool:
        results = decode(pool, jobs)
    assert list(results) == ["slow", "b", "slow-2", "c", "d"]
    assert all(numbers(frames.array) == list(range(20)) for frames in results.values())


def test_prefetch_is_bounded(clip: Path) -> None:
    drawn = 0

    def jobs() -> Iterator[DecodeJob]:
        nonlocal drawn
        for number in range(50):
            drawn += 1
            yield DecodeJob(str(number), clip)

    with DecodePool(2) as pool:
        for taken, _ in enumerate(pool.decode(jobs()), start=1):
            time.sleep(0.15)
            assert drawn <= taken + pool.workers + 1
            if taken == 6:
                break


@pytest.mark.parametrize("cue", ["hang_decord", "midway_decord", "crash_decord", "noise_decord"])
def test_second_decoder_takes_over(named: Make, cue: str) -> None:
    jobs = named("a", cue, "b", "c")
    with DecodePool(2, timeout_s=3, command=fake_command()) as pool:
        results = decode(pool, jobs)
    assert results[cue].decoder.startswith("pyav")
    for result in results.values():
        assert numbers(result.array) == list(range(20))


def test_clip_no_decoder_survives_costs_only_itself(named: Make) -> None:
    with DecodePool(2, timeout_s=2, command=fake_command()) as pool:
        results = decode(pool, named("hang_all", "a", "crash_all", "b"))
        seen = pids(pool)
    hung, crashed = results["hang_all"], results["crash_all"]
    assert (hung.code, hung.attempts) == ("E_DECODE", 2)
    assert "decord was silent for 2 s and was killed; pyav was silent" in hung.message
    assert hung.decoder.startswith("pyav ")
    assert (crashed.code, crashed.attempts) == ("E_DECODE", 2)
    assert "exit status -11" in crashed.message
    assert numbers(results["a"].array) == numbers(results["b"].array) == list(range(20))
    assert traceless(seen)


def test_nothing_is_left_after_an_exception(named: Make) -> None:
    seen: list[int] = []

    def interrupted() -> None:
        with DecodePool(2, command=fake_command()) as pool:
            for _ in pool.decode(named("a", "hang_all", "b")):
                wait_until(lambda: len(pids(pool)) == 2)
                seen.extend(pids(pool))
                raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - started < 20
    assert len(seen) == 2
    assert traceless(seen)


def test_abandoned_loop_leaves_a_usable_pool(named: Make) -> None:
    with DecodePool(2, command=fake_command()) as pool:
        stream = pool.decode(named("a", "hang_all", "b", "c"))
        next(stream)
        started = time.monotonic()
        stream.close()
        assert time.monotonic() - started < 5
        again = decode(pool, named("d"))["d"]
        assert numbers(again.array) == list(range(20))
        seen = pids(pool)
    assert traceless(seen)


def test_failing_job_source_is_the_callers_error(clip: Path) -> None:
    def jobs() -> Iterator[DecodeJob]:
        yield DecodeJob("a", clip)
        raise RuntimeError("no more")

    with DecodePool(1) as pool, pytest.raises(RuntimeError, match="no more"):
        list(pool.decode(jobs()))


PARENT = """
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from pipeline.decode import DecodeJob, DecodePool
with DecodePool(1, command={command}) as pool:
    stream = pool.decode([DecodeJob("a", Path({clip!r})), DecodeJob("b", Path({hang!r}))])
    _, frames = next(stream)
    print(len(frames.array), pool._all[0].process.pid, flush=True)
    {then}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_worker_in_an_endless_loop_dies_with_a_killed_parent(named: Make) -> None:
    plain, hang = named("a", "hang_all")
    command = f"[*{FAKE!r}, str(__import__('os').getpid())]"
    script = PARENT.format(command=command, clip=str(plain.path), hang=str(hang.path), then="next(stream)")
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    pid = int(parent.stdout.readline().split()[1])
    assert alive(pid)
    time.sleep(0.3)  # into the loop
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert wait_until(lambda: not alive(pid))


def test_pool_works_in_a_program_read_from_stdin(clip: Path) -> None:
    script = PARENT.format(command=None, clip=str(clip), hang=str(clip), then="")
    done = subprocess.run([sys.executable, "-"], input=script, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split()[0] == "20", done.stderr
    assert done.stderr == ""


def test_worker_never_loads_the_model_stack(named: Make) -> None:
    with DecodePool(1, command=fake_command()) as pool:
        results = decode(pool, named("a", "modules"))
    assert len(results["a"].array) == 20
    assert "loaded []" in results["modules"].message


def test_decord_is_left_out_where_it_is_not_installed(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.decode.pool.find_spec", lambda name: None)
    with DecodePool(1) as pool:
        assert pool.backends == ("pyav",)
        frames = decode(pool, [DecodeJob("a", clip)])["a"]
    assert frames.decoder.startswith("pyav")


@pytest.mark.parametrize(
    ("start", "end", "code"),
    [(-1, None, "E_START_NEGATIVE"), (5, 5, "E_END_BEFORE_START"), (0, 0, "E_END_BEFORE_START")],
)
def test_impossible_intervals(clip: Path, start: int, end: int | None, code: str) -> None:
    with DecodePool(1) as pool:
        [(_, result)] = pool.decode([DecodeJob("a", clip, None, start, end)])
    assert isinstance(result, ClipError)
    assert result.code == code
