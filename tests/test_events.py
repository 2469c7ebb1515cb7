import pytest

from pipeline.events import Console, Event


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
