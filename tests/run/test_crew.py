"""Executors: one contract, the same bytes from each; what they refuse, and what they say."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.presets import Recipe, load_recipe
from pipeline.run import crew
from pipeline.run.build import build
from pipeline.run.crew import Running, gpus
from pipeline.sizes import parse_size, size_text
from pipeline.store.layout import events_path, load_build
from tests.conftest import WORLD_CLIPS
from tests.run.worlds import import_clips, made_files


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("demo", overrides=["run.shard_clips=3", "run.batch.motion=2"])


@pytest.fixture(scope="module")
def serial(small_world: Path, tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> dict[str, bytes]:
    cache = tmp_path_factory.mktemp("serial") / "cache"
    import_clips(cache, small_world)
    assert build(cache, "demo", recipe, ("motion",)).computed == {"motion": WORLD_CLIPS}
    return made_files(cache)


@pytest.mark.parametrize("executor", ["process", "dask"])
def test_every_executor_writes_the_same_bytes(
    executor: str, small_world: Path, tmp_path: Path, recipe: Recipe, serial: dict[str, bytes]
) -> None:
    cache = tmp_path / "cache"
    import_clips(cache, small_world)
    heard: list[Any] = []
    result = build(cache, "demo", recipe, ("motion",), heard.append, Running(executor, 2, 1, 256 << 20))
    assert result.computed == {"motion": WORLD_CLIPS}
    assert result.clips.done == WORLD_CLIPS
    assert result.seconds["motion"] > 0
    assert made_files(cache) == serial
    assert len([name for name in serial if "receipts" in name]) == WORLD_CLIPS // 3
    rates = load_build(cache, "demo")["rates"]
    assert rates["motion"]["clips"] == WORLD_CLIPS
    assert rates["decode"]["rows"] >= 40 * WORLD_CLIPS
    lines = [json.loads(line) for line in events_path(cache, "demo").read_text().splitlines()]
    who = {line["who"] for line in lines if line["kind"] == "work"}
    assert 1 <= len(who) <= 2
    last = {
        name: [line for line in lines if line["who"] == name and line["kind"] == "work"][-1] for name in who
    }
    assert sum(line["stages"]["motion"]["clips"] for line in last.values()) == WORLD_CLIPS
    steps = [event for event in heard if event.kind == "step" and event.stage == "building"]
    assert steps[-1].done == steps[-1].total == steps[-1].stages["motion"]["done"] == WORLD_CLIPS
    assert steps[-1].stages["motion"]["per_s"] > 0


def test_members_that_die_at_once_end_the_build(
    small_world: Path, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_clips(tmp_path / "cache", small_world)
    monkeypatch.setattr(crew, "_serve", _die)
    with pytest.raises(UserError, match=r"worker processes die .* status 7"):
        build(tmp_path / "cache", "demo", recipe, ("motion",), running=Running("process", 1))


def _die(*_: object) -> None:
    raise SystemExit(7)


def test_a_mistake_of_a_member_is_the_builds(
    small_world: Path, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_clips(tmp_path / "cache", small_world)
    monkeypatch.setattr(crew, "_serve", _mistake)
    with pytest.raises(UserError, match="such a mistake"):
        build(tmp_path / "cache", "demo", recipe, ("motion",), running=Running("process", 1))


def test_what_goes_wrong_in_a_member_is_shown_at_once(
    small_world: Path, tmp_path: Path, recipe: Recipe
) -> None:
    """A fault of ours must not look like a death, after which another process tries again."""
    import_clips(tmp_path / "cache", small_world)
    broken = replace(recipe, weights={})
    with pytest.raises(RuntimeError, match=r"(?s)in a worker process:.*Traceback.*KeyError: 'motion'"):
        build(tmp_path / "cache", "demo", broken, ("motion",), running=Running("process", 1))


def _mistake(_: object, channel: Any, *__: object) -> None:
    channel.send(UserError("such a mistake"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"executor": "threads"}, "choose one of serial, process, dask"),
        ({"workers": 2}, "--workers 2 needs --executor"),
        ({"executor": "process", "scheduler": "tcp://x:1"}, "need --executor dask"),
        ({"executor": "dask", "scheduler": "tcp://x:1", "slurm": Path("x.yaml")}, "not both"),
        ({"memory": 1 << 20}, "--memory 1MiB is too little"),
    ],
)
def test_options_that_do_not_fit_together(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        Running(**options)


def test_sizes() -> None:
    assert [parse_size(text) for text in ("8GiB", "512 mib", "1.5GB", "77", "2KB")] == [
        8 << 30, 512 << 20, 1_500_000_000, 77, 2000,
    ]  # fmt: skip
    assert size_text(3 << 29) == "1.5GiB"
    for wrong in ("", "much", "-1GiB", "8 parsecs"):
        with pytest.raises(UserError, match="8GiB"):
            parse_size(wrong)


def test_gpus_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-abc")
    assert gpus() == ["2", "GPU-abc"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus() == []


SLURM = {
    "queue": "gpu", "account": "project42", "cores": 8, "processes": 1, "memory": "64GB", "walltime": "01:00:00",
    "job_extra_directives": ["--gres=gpu:1"],
    "worker_extra_args": ["--resources", "GPU=1", "--lifetime", "55m", "--lifetime-stagger", "4m"],
}  # fmt: skip


def test_the_script_of_a_slurm_job(tmp_path: Path) -> None:
    from pipeline.run.dask_crew import slurm_cluster

    file = tmp_path / "slurm.yaml"
    file.write_text(yaml.safe_dump(SLURM))
    with slurm_cluster(file) as cluster:
        script = cluster.job_script()
    for line in ("-p gpu", "-A project42", "--cpus-per-task=8", "--mem=60G", "-t 01:00:00", "--gres=gpu:1"):
        assert f"#SBATCH {line}" in script
    assert "--resources GPU=1 --lifetime 55m" in script
    file.write_text("cores: 2\nmemory: 1GB\nnonsense: 3\n")
    with pytest.raises(UserError, match=r"slurm\.yaml: no options of a SLURMCluster .*nonsense"):
        slurm_cluster(file)
    with pytest.raises(UserError, match="No such file"):
        slurm_cluster(tmp_path / "missing.yaml")


def test_a_scheduler_that_is_not_there(
    small_world: Path, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.run import dask_crew

    monkeypatch.setattr(dask_crew, "FIRST_WORKER_S", 1.0)
    import_clips(tmp_path / "cache", small_world)
    with pytest.raises(UserError, match=r"no Dask worker at tcp://127\.0\.0\.1:9"):
        build(
            tmp_path / "cache",
            "demo",
            recipe,
            ("motion",),
            running=Running("dask", scheduler="tcp://127.0.0.1:9"),
        )
