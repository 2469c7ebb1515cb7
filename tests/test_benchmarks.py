"""The harness that every benchmark reports through, and the benchmark that needs a GPU to mean something."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import harness


def test_contenders_run_in_turns_after_a_warm_up() -> None:
    order: list[str] = []

    def contender(name: str) -> int:
        order.append(name)
        return 7

    times = harness.race({"a": lambda: contender("a"), "b": lambda: contender("b")}, 7, rounds=3)
    assert order == ["a", "b"] * 4
    assert [len(timing.rounds) for timing in times.values()] == [3, 3]


def test_ratios_are_taken_within_a_round() -> None:
    slow, fast = harness.Timing((8.0, 2.0, 4.0)), harness.Timing((2.0, 1.0, 2.0))
    assert harness.ratio(slow, fast) == {"median": 2.0, "low": 2.0, "high": 4.0}
    assert slow.record(12) == {"median": 4.0, "low": 2.0, "high": 8.0, "per_second": 3.0}


def test_a_run_that_dropped_items_fails() -> None:
    with pytest.raises(SystemExit, match="fast made 6 items instead of 7"):
        harness.race({"slow": lambda: 7, "fast": lambda: 6}, 7, rounds=1)


def test_report_is_one_json_line_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    harness.report("some", {"ratio": 2.5}, out=True)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    record = json.loads(printed)
    assert record["benchmark"] == "some"
    assert record["ratio"] == 2.5
    assert record["machine"]["cores"] >= 1
    assert "torch" in record["machine"]["versions"]
    assert (tmp_path / "results" / "some.json").read_text() == printed


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_speed_of_light_on_the_gpu() -> None:
    command = [sys.executable, "-m", "benchmarks.speed_of_light", "--preset", "base", "--stages", "semantic",
               "--clips", "24", "--workers", "8", "--set", "semantic.precision=bfloat16"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)["semantic"]
    assert record["device"] == "cuda"
    assert record["rows"] > 24 * 8
    assert record["limited_by"] in ("decode", "feed", "model")
    if record["limited_by"] == "model":
        assert record["speed_of_light"]["median"] >= 0.9
