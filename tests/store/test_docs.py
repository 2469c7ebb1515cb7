"""docs/cache-format.md: its programs run, and its records have the entries of real ones."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ClipError
from pipeline.store.jobs import Job, JobShard, create_job, folder_of, job_path
from pipeline.store.lease import take
from pipeline.store.records import QuarantineEntry
from pipeline.store.writer import Stage, write_build
from tests.store.caches import ARRAYS, fill, make_stage

TEXT = (Path(__file__).parents[2] / "docs" / "cache-format.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.chdir(tmp_path)
    stage = make_stage(tmp_path / "CACHE")
    fill(stage, [3, 9, 5])
    stage.add_quarantine(QuarantineEntry.of("k", "c", "semantic", ClipError("E_DECODE", "no")))
    write_build(tmp_path / "CACHE", "demo", {"preset": "small", "stages": {"semantic": stage.key}})
    return stage


def run(program: str) -> list[str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(program, "cache-format.md", "exec"), {})  # noqa: S102  (our own page)
    return sorted(out.getvalue().splitlines())


@pytest.mark.usefixtures("stage")
def test_programs() -> None:
    foreign, own, plain = map(run, blocks("python"))
    assert foreign[1].startswith("clip 1 {")
    for spec in ARRAYS:
        assert f"'{spec.name}': {(9, *spec.row_shape)}" in foreign[1]
    assert [line.split(" {")[0] for line in own] == ["clip 0 3", "clip 1 9", "clip 2 5"]
    assert [line.rsplit("features.zarr/", 1)[1] for line in plain] == [
        "features/c/0/0/0 (12, 5, 3)",
        "features/c/1/0/0 (5, 5, 3)",
        "present/c/0/0 (12, 5)",
        "present/c/1/0 (5, 5)",
    ]


def first_line(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text().splitlines()[0])
    return record


def test_records(stage: Stage) -> None:
    root, folder = stage.folder.root, stage.folder
    paths = [root / "cache.json", root / "builds" / "demo.json", folder.stage_json, folder.receipt(0)]
    paths.append(folder.quarantine)
    shard = JobShard("semantic", stage.key, 7, ("a",), 120)
    create_job(root, Job(0, "0123456789abcdef", "ma52", ("a",), (1,), (shard,)))
    held = take(folder_of(root), 0, 1)
    assert held is not None
    paths += [job_path(root, 0), held.path]
    shown = [json.loads(block) for block in blocks("json")]
    assert len(shown) == len(paths)
    for example, path in zip(shown, paths, strict=True):
        assert example.keys() == first_line(path).keys(), path
    _, _, stage_json, receipt, _, job, _ = zip(shown, map(first_line, paths), strict=True)
    held.__exit__()
    for example, found in (
        [record["arrays"][0] for record in stage_json],
        [record["files"]["features"] for record in receipt],
        [record["shards"][0] for record in job],
    ):
        assert example.keys() == found.keys()
