"""Leases: one owner, the dead told from the living, no comparison of clocks."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.store import lease
from pipeline.store.lease import Lease, LeaseLostError, Owner, Watch, check_lease, count_line, take, turns
from pipeline.store.records import to_bytes


def taken(folder: Path, turn: int = 1) -> Lease:
    held = take(folder, 3, turn)
    assert held is not None
    return held


def foreign(folder: Path, turn: int, **changes: object) -> Path:
    """The lease of a process elsewhere, as it was written last."""
    owner = Owner("node9", "another boot", 17, 4711, "token", 60.0).to_json() | changes
    path = folder / f"3.{turn}.lease"
    path.write_bytes(to_bytes(owner) + count_line(5))
    return path


def test_one_of_many_gets_it_and_leaving_gives_it_back(tmp_path: Path) -> None:
    with taken(tmp_path) as held:
        assert take(tmp_path, 3, 1) is None
        assert Watch().held(tmp_path, 3)
        assert not Watch().held(tmp_path, 33)
        held.check()
        owner = check_lease(held.path.read_bytes())
        assert (owner.host, owner.pid) == (platform.node(), os.getpid())
    assert not list(tmp_path.iterdir())


def test_the_higher_turn_counts(tmp_path: Path) -> None:
    first = taken(tmp_path)
    with taken(tmp_path, 2) as second:
        assert list(turns(tmp_path, 3)) == [2]
        with pytest.raises(LeaseLostError):
            first.check()
        first.__exit__()
        second.check()
    assert not list(tmp_path.iterdir())


def test_a_lease_made_anew_for_the_same_turn_is_anothers(tmp_path: Path) -> None:
    first = taken(tmp_path)
    first.path.unlink()
    with taken(tmp_path):
        with pytest.raises(LeaseLostError):
            first.check()
        first.__exit__()
        assert list(turns(tmp_path, 3)) == [1]


def test_the_heartbeat_of_the_living_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SECONDS", 0.3)
    with taken(tmp_path) as held:
        watch = Watch()
        for _ in range(20):
            assert watch.alive(held.path)
            time.sleep(0.05)
        assert check_lease(held.path.read_bytes()) == held.owner


def test_a_process_that_is_gone_is_dead_at_once(tmp_path: Path) -> None:
    program = f"""
import os
from pathlib import Path
from pipeline.store.lease import take
take(Path({str(tmp_path)!r}), 3, 1)
os.kill(os.getpid(), 9)
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 30
    while not (turns(tmp_path, 3) and process.poll() is not None) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert turns(tmp_path, 3)
    assert not Watch().held(tmp_path, 3)
    # Its number has gone to another process: this one.
    mine = check_lease(turns(tmp_path, 3)[1].read_bytes()).to_json() | {"pid": os.getpid(), "start": 1}
    turns(tmp_path, 3)[1].write_bytes(to_bytes(mine) + count_line(0))
    assert not Watch().held(tmp_path, 3)


def test_elsewhere_a_heartbeat_that_stands_still_is_watched_for_as_long_as_the_lease_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    path, watch = foreign(tmp_path, 1), Watch()
    os.utime(path, (0, 0))  # a clock far away: nobody looks
    assert watch.alive(path)
    now += 59
    assert watch.alive(path)
    path.write_bytes(path.read_bytes()[:-30] + count_line(6))
    assert watch.alive(path)
    monkeypatch.setattr(time, "time", lambda: 0.0)  # set back: nobody looks either
    now += 59
    assert watch.alive(path)
    now += 2
    assert not watch.alive(path)
    assert Watch().alive(path)  # who has just come cannot know


def test_a_damaged_lease_runs_out_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    path, watch = foreign(tmp_path, 1), Watch()
    path.write_bytes(b"torn")
    assert watch.alive(path)
    now += lease.SECONDS + 1
    assert not watch.alive(path)
