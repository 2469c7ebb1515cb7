"""kill -9 at random moments, builds side by side, one frozen past its lease, a clock set back."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from pipeline.report import describe
from pipeline.store.verify import verify
from tests.conftest import WORLD_CLIPS
from tests.faults.forks import BLOCK, Forks, essence, passed, receipts_of, until

STAGES = 4


def logs(cache: Path) -> list[Path]:
    return sorted(cache.glob("stages/*/*/wip/*.log"))


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_kills_at_random_moments_change_no_byte(
    kills: int, cache: Path, undisturbed: Path, forks: Forks, tmp_path: Path
) -> None:
    """Each build is killed and started again until it is through; then the next begins with an empty cache."""
    dice, empty, events = random.Random(kills), tmp_path / "empty", tmp_path / "events"
    shutil.copytree(cache, empty)
    wanted, killed, builds, here = essence(undisturbed), 0, 0, 0
    while killed < kills or here:
        pid = forks.start(cache, events)
        if killed < kills:
            # Into the work of this process, as far as some clips: not only into its start.
            before, aim = len(passed(events)), dice.randrange(BLOCK + 2)
            until(lambda: len(passed(events)) >= before + aim or _ended(pid))  # noqa: B023
            time.sleep(dice.uniform(0, 0.15))
            os.kill(pid, signal.SIGKILL)
        status = forks.wait(pid)
        if status == -signal.SIGKILL:
            killed, here = killed + 1, here + 1
            report = verify(cache)
            assert {problem.kind for problem in report.problems} <= {"leftover"}, report.problems
        if status == 0:
            assert essence(cache) == wanted
            assert len(passed(events)) <= WORLD_CLIPS + here * BLOCK
            shutil.rmtree(cache)
            shutil.copytree(empty, cache)
            events.unlink()
            builds, here = builds + 1, 0
    assert builds >= 1


def _ended(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        return file.read().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("builds", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_builds_side_by_side_do_no_clip_twice(builds: int, cache: Path, forks: Forks, tmp_path: Path) -> None:
    events = tmp_path / "events"
    pids = [forks.start(cache, events) for _ in range(builds)]
    assert [forks.wait(pid) for pid in pids] == [0] * builds
    done = passed(events)
    assert len(done) == len({key for _, key in done}) == WORLD_CLIPS
    assert len({pid for pid, _ in done}) == 2  # of two shards' worth of clips
    assert describe(cache, "demo")["clips"]["done"] == WORLD_CLIPS
    assert len(receipts_of(cache)) == 2 * STAGES
    assert verify(cache).problems == ()


def test_the_dead_are_taken_over(cache: Path, undisturbed: Path, forks: Forks, tmp_path: Path) -> None:
    """One of two builds is killed in its work; the other ends it, without a wait for the lease to run out."""
    first, second = tmp_path / "first", tmp_path / "second"
    doomed = forks.start(cache, first)
    until(lambda: len(passed(first)) > BLOCK)
    heir = forks.start(cache, second)
    until(lambda: len(passed(second)) >= 1)
    os.kill(doomed, signal.SIGKILL)
    assert forks.wait(doomed) == -signal.SIGKILL
    assert forks.wait(heir) == 0
    assert len(passed(first)) + len(passed(second)) <= WORLD_CLIPS + BLOCK
    assert essence(cache) == essence(undisturbed)


def test_frozen_past_its_lease_and_continued(cache: Path, forks: Forks, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    frozen = forks.start(cache, first, lease_s=1.0)
    until(lambda: len(passed(first)) > BLOCK)
    os.kill(frozen, signal.SIGSTOP)
    try:
        assert forks.wait(forks.start(cache, second, lease_s=1.0)) == 0
        # The frozen one may have finished a clip in its log and not told of it yet: what counts is the cache.
        assert describe(cache, "demo")["clips"]["done"] == WORLD_CLIPS
        assert len(passed(first)) + len(passed(second)) <= WORLD_CLIPS + BLOCK
        whole = essence(cache)
        assert len(receipts_of(cache)) == 2 * STAGES
    finally:
        os.kill(frozen, signal.SIGCONT)
    assert forks.wait(frozen) == 0  # it went on with what was left: nothing
    after = {name: data for name, data in essence(cache).items() if not name.endswith("quarantine.jsonl")}
    assert {name: after.get(name) for name in whole} == whole
    assert describe(cache, "demo")["clips"]["done"] == WORLD_CLIPS
    assert verify(cache).sound


def test_a_clock_that_is_set_back(cache: Path, undisturbed: Path, forks: Forks, tmp_path: Path) -> None:
    """By a day, in one of two builds: nobody is taken for dead, nothing is done twice."""
    events = tmp_path / "events"
    pids = [forks.start(cache, events, lease_s=2.0, clock_s=back) for back in (86400.0, 0.0)]
    assert [forks.wait(pid) for pid in pids] == [0, 0]
    assert len(passed(events)) == WORLD_CLIPS
    assert essence(cache).keys() == essence(undisturbed).keys()
    assert verify(cache).problems == ()
