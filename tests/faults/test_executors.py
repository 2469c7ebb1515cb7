"""Workers and clients of the process and the Dask executor, killed with SIGKILL in the middle of a build."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.presets import load_recipe
from pipeline.run.build import build
from pipeline.store.layout import events_path
from tests.conftest import WORLD_CLIPS
from tests.run.worlds import import_clips, made_files

OPTIONS = ["run.shard_clips=4", "run.batch.motion=2"]  # 3 jobs, each of two blocks
PROGRAM = (
    "import sys\nfrom pathlib import Path\nfrom pipeline.presets import load_recipe\n"
    "from pipeline.run.build import build\nfrom pipeline.run.crew import Running\n"
    f"recipe = load_recipe('demo', overrides={OPTIONS!r})\n"
    "done = build(Path(sys.argv[1]), 'demo', recipe, ('segment',), running=Running(sys.argv[2], 2, 1))\n"
    "print(done.computed['segment'], done.clips.done)\n"
)


def start(cache: Path, executor: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROGRAM, str(cache), executor]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def working(cache: Path) -> set[int]:
    """Process ids of the workers that told of a clip."""
    path = events_path(cache, "demo")
    lines = path.read_bytes().splitlines() if path.exists() else []
    told: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith(b"}")]
    return {int(event["who"].rpartition(":")[2]) for event in told if event["kind"] == "work"}


def wait_until(condition: Callable[[], Any], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="module")
def undisturbed(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    cache = tmp_path_factory.mktemp("undisturbed") / "cache"
    import_clips(cache, small_world)
    build(cache, "demo", load_recipe("demo", overrides=OPTIONS), ("segment",))
    return made_files(cache)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["process", "dask"])
def test_a_killed_worker_costs_its_block(
    executor: str, small_world: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    cache = tmp_path / "cache"
    import_clips(cache, small_world)
    client = start(cache, executor)
    wait_until(lambda: working(cache))
    os.kill(next(iter(working(cache))), signal.SIGKILL)
    out, _ = client.communicate(timeout=400)
    assert client.returncode == 0
    computed, done = map(int, out.split())
    assert done == WORLD_CLIPS
    # What the dead worker had in its logs is not computed again, nor counted by those who live.
    assert WORLD_CLIPS - 4 <= computed <= WORLD_CLIPS
    assert made_files(cache) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["process", "dask"])
def test_a_killed_client_takes_its_workers_along_and_the_next_goes_on(
    executor: str, small_world: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    cache = tmp_path / "cache"
    import_clips(cache, small_world)
    client = start(cache, executor)
    wait_until(lambda: working(cache))
    workers = working(cache)
    client.kill()
    client.wait()
    wait_until(lambda: not any(alive(pid) for pid in workers), 60)
    logged = {path: path.stat().st_size for path in cache.glob("stages/segment/*/wip/*.log")}
    receipts = {path: path.read_bytes() for path in cache.glob("stages/segment/*/receipts/*.json")}
    assert logged or receipts
    out, _ = start(cache, executor).communicate(timeout=400)
    computed, done = map(int, out.split())
    assert done == WORLD_CLIPS
    assert computed < WORLD_CLIPS or not receipts
    assert {path: path.read_bytes() for path in receipts} == receipts
    assert made_files(cache) == undisturbed


@pytest.mark.slow
def test_a_killed_client_leaves_a_running_scheduler_that_serves_the_next(
    small_world: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    from pipeline.run.dask_crew import local_cluster

    cache = tmp_path / "cache"
    import_clips(cache, small_world)
    with local_cluster(2) as cluster:
        program = PROGRAM.replace(
            "Running(sys.argv[2], 2, 1)", "Running('dask', None, 1, scheduler=sys.argv[2])"
        )
        command = [sys.executable, "-c", program, str(cache), cluster.scheduler_address]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        wait_until(lambda: working(cache))
        client.kill()
        client.wait()
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=400, check=True).stdout
    assert int(out.split()[1]) == WORLD_CLIPS
    assert made_files(cache) == undisturbed
