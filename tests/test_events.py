import json
import time
from pathlib import Path

import pytest

from pipeline.events import Console, Event, EventFile, Follower, Pace, last_step, parse_event


def test_log_lines_carry_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(every_s=0.0)
    for done in range(1, 4):
        console(Event("step", "building", done, 3))
    console(Event("warning", "decode", text="quarantined x: E_DECODE"))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines[:3]] == ["building: 1/3", "building: 2/3", "building: 3/3"]
    assert all("/s, " in line and line.endswith(" s left") for line in lines[:3])
    assert lines[3] == "quarantined x: E_DECODE"


def test_log_is_not_flooded_and_the_end_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(every_s=3600.0)
    for done in range(1, 1001):
        console(Event("step", "building", done, 1000))
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_terminal_gets_one_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console()
    monkeypatch.setattr(console, "terminal", True)
    for done in (1, 2):
        console(Event("step", "building", done, 2))
        console(Event("note", "", text="a line"))
    err = capsys.readouterr().err
    assert "2/2" in err
    assert err.count("a line") == 2


def work(who: str, done: int, clips: int, seconds: float) -> Event:
    stages = {"segment": {"clips": clips, "seconds": seconds}}
    return Event("work", "building", done, done + 1, stages=stages, who=who)


def test_pace_adds_up_the_workers_and_rates_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[Event] = []
    pace = Pace(heard.append, 30, {"segment": 20, "motion": 0})
    pace(work("a:1", 4, 4, 2.0))
    pace(work("b:2", 5, 5, 1.0))
    pace(work("a:1", 6, 6, 3.0))  # so far, not more
    pace(Event("note", "building", text="a line"))
    assert [(event.done, event.total) for event in heard[:3]] == [(4, 30), (9, 30), (11, 30)]
    assert heard[2].stages == {"segment": {"done": 11, "total": 20, "per_s": 7.0, "left_s": 1.3}}
    assert heard[3].text == "a line"
    Console(every_s=0.0)(heard[2])
    assert "building: 11/30, " in (line := capsys.readouterr().err)
    assert line.endswith("(segment 7.0/s 1 s)\n")


def test_a_file_of_events_is_followed_while_others_write_it(tmp_path: Path) -> None:
    path = tmp_path / "builds" / "demo.events.jsonl"
    with EventFile(path, every_s=3600.0) as one, EventFile(path) as two:
        one(Event("note", "building", text="before"))
        with Follower(path) as follower:
            for done in range(6):
                one(Event("step", "building", done, 5))
            two(work("", 1, 1, 0.5))
            told = list(follower)
            assert [event.done for event in told if event.kind == "step"] == [0, 5]  # the first, and the last
            assert told[-1].who == two.who
            assert told[-1].stages == {"segment": {"clips": 1, "seconds": 0.5}}
            line = json.dumps({"kind": "note", "stage": "x", "text": "torn"})
            with path.open("a") as file:
                file.write("{no json}\n[]\n" + line[:9])
                file.flush()
                assert list(follower) == []
                file.write(line[9:] + "\n")
            assert [event.text for event in follower] == ["torn"]


def test_a_large_file_of_events_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.events.ROTATE_BYTES", 100)
    path = tmp_path / "demo.events.jsonl"
    for text in ("a" * 200, "second"):
        with EventFile(path) as file:
            file(Event("note", "building", text=text))
    assert "second" in path.read_text()
    assert "aaa" in (tmp_path / "demo.events.old.jsonl").read_text()
    assert parse_event(path.read_bytes().strip()) is not None


def test_last_step_is_read_from_the_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert last_step(path) is None
    stages = {"segment": {"done": 2.0, "total": 9.0, "per_s": 1.5, "left_s": 4.7}}
    with EventFile(path, every_s=0.0) as tell:
        tell(Event("step", "reading files", 9, 9))
        assert last_step(path) is None  # not of a build
        for done in range(1000):  # more than is read
            tell(Event("step", "building", done, 1000, stages=stages))
        tell(Event("note", "building", text="x" * 1000))
    with path.open("ab") as file:
        file.write(b'{"kind": "step", "do')
    told = last_step(path)
    assert told is not None
    assert (told["done"], told["total"], told["stages"]) == (999, 1000, stages)
    assert abs(told["time"] - time.time()) < 60
