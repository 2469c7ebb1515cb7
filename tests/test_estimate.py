"""Estimates: without a cache, from a clip table, with measured rates; in words and as JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.estimate import estimate, measured_seconds, table
from pipeline.presets import load_recipe, unweighted_spec
from pipeline.store.layout import load_build
from tests.run.worlds import bmoe, import_clips


def by_stage(record: dict) -> dict[str, dict]:  # type: ignore[type-arg]
    return {cost["stage"]: cost for cost in record["stages"]}


def test_ma52_before_anything_is_downloaded() -> None:
    record = estimate("ma52", "base")
    assert (record["clips"], record["frames"]) == (22_422, 22_422 * 64)
    stages = by_stage(record)
    assert stages["segment"]["tflop"] == pytest.approx(22_422 * 64 * 2 * 2.36458, rel=1e-4)
    assert stages["semantic"]["rows"] == 22_422 * 13  # windows of 16 at stride 4
    assert stages["semantic"]["tflop"] == pytest.approx(22_422 * 13 * 5 * 2 * 0.180345, rel=1e-4)
    assert stages["motion"]["tflop"] == pytest.approx(22_422 * 2 * 0.032767, rel=1e-4)
    assert stages["motion"]["gb"] == pytest.approx(22_422 * (8 * 2048 * 2 + 4 * 352) / 1e9)
    assert record["total"]["tflop"] == pytest.approx(sum(cost["tflop"] for cost in stages.values()))
    assert record["total"]["hours"] is None  # nothing measured, nothing said


def test_options_of_the_preset_count() -> None:
    whole, third = (
        by_stage(estimate("ma52", "base")),
        by_stage(estimate("ma52", "base", ["segment.stride=3"])),
    )
    assert third["segment"]["tflop"] == pytest.approx(whole["segment"]["tflop"] / 3, rel=0.05)
    assert third["motion"] == whole["motion"]
    tokens = by_stage(estimate("ma52", "base", ["semantic.tokens={width: 256}"]))
    added = 2 * 8 * 7 * 7 * 256 * whole["semantic"]["rows"] / 1e9
    assert tokens["semantic"]["gb"] == pytest.approx(whole["semantic"]["gb"] + added)


def test_the_looks_for_the_person_are_counted() -> None:
    """Three more forwards a clip, however few frames are segmented."""
    whole, cropped = (
        by_stage(estimate("ma52", "base", ["segment.stride=16", f"segment.crop={crop}"], tflops=100))[
            "segment"
        ]
        for crop in ("none", "person")
    )
    assert (whole["rows"], cropped["rows"]) == (4 * 22_422, 4 * 22_422)
    assert cropped["tflop"] == pytest.approx(7 / 4 * whole["tflop"])
    assert cropped["hours"] == pytest.approx(7 / 4 * whole["hours"])


def test_hours_at_a_given_speed() -> None:
    record = estimate("ma52", "paper", tflops=400)
    motion = by_stage(record)["motion"]
    assert motion["hours"] == pytest.approx(motion["tflop"] / 400 / 3600)
    assert record["total"]["hours"] == pytest.approx(sum(cost["hours"] for cost in record["stages"]))


def test_measured_rates_come_first_and_only_for_the_same_encoder(built_cache: Path) -> None:
    spec = load_recipe("demo").spec
    rates = load_build(built_cache, "demo")["rates"]
    record = estimate("demo", "demo", cache=built_cache, tflops=1e9)
    assert record["clips"] == 12
    for name, cost in by_stage(record).items():
        assert cost["rows"] == rates[name]["rows"]
        assert cost["hours"] == pytest.approx(rates[name]["seconds"] / 3600, abs=1e-9)
        assert "measured here" in cost["by"]
    for option in ("semantic.precision=bfloat16", "motion.crop=64"):
        stage = option.partition(".")[0]
        other = unweighted_spec("demo", [option])
        assert measured_seconds(built_cache, other, stage) is None
        assert measured_seconds(built_cache, other, "segment") == measured_seconds(
            built_cache, spec, "segment"
        )


def test_unknown_datasets_and_unread_files_are_said(small_world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dataset import"):
        estimate("nowhere", "base")
    import_clips(tmp_path / "cache", small_world)
    with pytest.raises(UserError, match="bmoe-cache plan"):
        estimate("demo", "demo", cache=tmp_path / "cache")


def test_the_command_loads_no_torch_and_prints_the_table() -> None:
    program = (
        "import sys, cli\nfrom typer.testing import CliRunner\n"
        "r = CliRunner().invoke(cli.app, ['estimate', '--dataset', 'ma52', '--preset', 'paper', '--tflops', '400'])\n"
        "print(r.stdout, r.exit_code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["0", "False"]
    for word in ("22,422 clips", "segment", "16,164,250", "at 400 TFLOP/s", "total"):
        assert word in done.stdout


def test_json_is_the_record(built_cache: Path) -> None:
    done = bmoe("estimate", "--dataset", "demo", "--preset", "demo", "--cache", built_cache, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == estimate("demo", "demo", cache=built_cache)
    assert table(json.loads(done.stdout)).count("\n") == 7  # heading, columns, decode, four stages, total


def test_plans_say_what_is_left_to_pay(built_cache: Path) -> None:
    done = bmoe("plan", "--dataset", "demo", "--preset", "demo", "--cache", built_cache, "--json",
                "--set", "regions.padding=0.3")  # fmt: skip
    stages = {stage["stage"]: stage for stage in json.loads(done.stdout)["stages"]}
    assert stages["segment"]["hours"] == stages["segment"]["tflop"] == 0
    assert stages["semantic"]["tflop"] > 0
    assert stages["semantic"]["hours"] == pytest.approx(
        load_build(built_cache, "demo")["rates"]["semantic"]["seconds"] / 3600
    )
