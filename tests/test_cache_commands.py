"""The commands about a cache, as a user types them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import app
from tests.store.caches import dataset_cache


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return dataset_cache(tmp_path / "cache")


def run(*words: str | Path, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == status, result.output
    return result.stdout


def test_text_and_json(cache: Path, tmp_path: Path) -> None:
    stages = json.loads(run("ls", "--cache", cache, "--json"))["stages"]
    assert {stage["stage"] for stage in stages} == {"segment", "semantic", "motion"}
    assert "demo/tiny" in run("ls", "--cache", cache)
    paths = [stage["path"] for stage in stages if stage["stage"] == "motion"] * 2
    assert json.loads(run("diff", *paths, "--json"))["arrays"]["features"]["equal"] == 1
    assert "12 clips in both" in run("diff", *paths)
    assert json.loads(run("gc", "--cache", cache, "--json"))["waste"] == []
    assert "sound" in run("verify", "--cache", cache)
    url = f"file://{tmp_path}/remote"
    assert json.loads(run("push", url, "--cache", cache, "--json"))["shards"] == 9
    assert "9 shards copied" in run("pull", url, "--cache", tmp_path / "new")


def test_failures_and_retry(cache: Path) -> None:
    words = ("failures", "--dataset", "demo", "--cache", cache)
    assert "E_DECODE         refused" in run(*words)
    assert json.loads(run(*words, "--retry", "--json"))["retried"] == 1
    assert json.loads(run(*words, "--json"))["codes"] == {"E_MISSING_FILE": 1}


def test_verify_tells_by_its_status(cache: Path) -> None:
    path = next(cache.glob("stages/motion/*/features.zarr/features/c/0/0/0"))
    path.write_bytes(b"x" + path.read_bytes()[1:])
    assert "damaged" in run("verify", "--cache", cache, status=1)
    report = json.loads(run("verify", "--cache", cache, "--repair", "--json"))
    assert report["sound"]
    assert len(report["problems"]) == 1


def test_export(cache: Path, tmp_path: Path) -> None:
    words = ("export", "--dataset", "demo", "--cache", cache, "--to", "npy", "--out", tmp_path / "out")
    assert "12 clips" in run(*words)
    assert len(list((tmp_path / "out" / "features" / "full").glob("*.npy"))) == 12
