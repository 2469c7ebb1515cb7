"""SIGINT and SIGTERM: one line, the status that shells expect, and the next run goes on at once."""

import os
import signal
from pathlib import Path

import pytest

from pipeline.store.flight import in_flight
from pipeline.store.verify import verify
from tests.conftest import WORLD_CLIPS
from tests.faults.forks import BLOCK, Forks, essence, passed, until


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_and_run_again(
    number: signal.Signals, status: int, cache: Path, undisturbed: Path, forks: Forks, tmp_path: Path
) -> None:
    events, said = tmp_path / "events", tmp_path / "said"
    pid = forks.command(cache, events, said)
    until(lambda: len(passed(events)) > 2 * BLOCK)
    os.kill(pid, signal.SIGSTOP)  # or it may be through before it is asked to stop
    (running,) = in_flight(cache, "demo")
    assert (running["running"], running["pid"]) == (True, pid)
    os.kill(pid, number)
    os.kill(pid, signal.SIGCONT)
    assert forks.wait(pid) == status
    last = said.read_text().splitlines()[-1]
    assert last == "stopped; what is finished is kept, run the same command to go on"
    assert "Traceback" not in said.read_text()
    (left,) = in_flight(cache, "demo")
    assert not left["running"]
    assert left["logged"] >= 2 * BLOCK or left["job"] > 0
    assert not list(cache.glob("jobs/*.lease"))
    assert {problem.kind for problem in verify(cache).problems} <= {"leftover"}
    assert forks.wait(forks.command(cache, events, said)) == 0
    assert len(passed(events)) <= WORLD_CLIPS + BLOCK
    assert essence(cache) == essence(undisturbed)
