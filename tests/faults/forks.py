"""Builds in processes of their own that start at once: one process imports everything and forks for each.

`python -m tests.faults.forks` reads one JSON line per build from stdin and answers with its process id; "wait" and a
process id give its exit status. `Forks` talks to it. A build appends a line per clip that passed to the file `events`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.presets import Recipe

ROOT = Path(__file__).parents[2]
BLOCK = 2  # clips that a kill may cost
STRIDE = "segment.stride=8"


def small_recipe(shard_clips: int = 6) -> "Recipe":
    """The demo preset with small shards and blocks."""
    from pipeline.presets import load_recipe

    recipe = load_recipe("demo", overrides=[STRIDE])
    batch = recipe.run.batch.model_copy(update={"motion": BLOCK})
    return replace(recipe, run=recipe.run.model_copy(update={"shard_clips": shard_clips, "batch": batch}))


class Forks(AbstractContextManager["Forks"]):
    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.faults.forks"]
        self.server = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __exit__(self, *_: object) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(30)
        assert self.server.stdout is not None
        self.server.stdout.close()

    def start(self, cache: Path, events: Path, **options: float) -> int:
        """Begin to build; the process id. Options: lease_s; clock_s, by which the clock is set back at the 3rd clip."""
        return int(self._ask({"cache": str(cache), "events": str(events), **options}))

    def command(self, cache: Path, events: Path, said: Path) -> int:
        """Begin `bmoe-cache build` with the same preset; the process id. What it says goes to the file `said`."""
        return int(self._ask({"cache": str(cache), "events": str(events), "said": str(said)}))

    def wait(self, pid: int) -> int:
        """The exit status, negative for a signal."""
        return int(self._ask({"wait": pid}))

    def _ask(self, request: dict[str, Any]) -> str:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return self.server.stdout.readline()


def passed(events: Path) -> list[tuple[int, str]]:
    """(process, clip key) of every clip that passed, in order."""
    if not events.exists():
        return []
    lines = (line.split() for line in events.read_text().splitlines())
    return [(int(pid), key) for pid, key in lines]


def until(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def receipts_of(cache: Path) -> list[Path]:
    return sorted(cache.glob("stages/*/*/receipts/*.json"))


def essence(cache: Path) -> dict[str, bytes]:
    """Every file of a cache that two builds must agree on, byte for byte: all but who made it, when, how fast."""
    from pipeline.store.records import load_record

    found = {}
    for path in sorted(path for path in cache.rglob("*") if path.is_file()):
        name = path.relative_to(cache).as_posix()
        if name.startswith(("builds/", "index/", "manifests/")) or name == "cache.json":
            continue
        if path.name.startswith(
            "."
        ):  # an unfinished write of a killed process: not of the cache, gc removes it
            continue
        found[name] = path.read_bytes()
        if path.name == "stage.json":
            record = {key: value for key, value in load_record(path).items() if key != "provenance"}
            found[name] = json.dumps(record).encode()
        elif path.name == "zarr.json" and path.parent.name == "features.zarr":
            found[name] = b""  # repeats stage.json
    return found


def main(requests: Sequence[str]) -> None:
    import torch

    import pipeline.run.build
    import pipeline.run.engine  # noqa: F401  (so that no build has to)

    torch.set_num_threads(1)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell starts what it runs behind with it ignored
    for line in requests:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = _build(**request)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        print(pid, flush=True)


def _build(
    cache: str, events: str, lease_s: float = 60.0, clock_s: float = 0.0, said: str | None = None
) -> int:
    from pipeline.run import crew
    from pipeline.run.build import build
    from pipeline.run.worker import Worker
    from pipeline.store import lease

    os.dup2(2, 1)
    os.close(0)
    lease.SECONDS, crew.POLL_S = lease_s, 0.05
    log = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    settle = Worker._settle
    clips = 0

    def noted(self: Worker, work: Any, *rest: Any) -> None:
        nonlocal clips
        os.write(log, f"{os.getpid()} {work.task.key}\n".encode())
        settle(self, work, *rest)
        clips += 1
        if clips == 3 and clock_s:
            now = time.time
            time.time = lambda: now() - clock_s

    Worker._settle = noted  # type: ignore[method-assign]
    if said is not None:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        return _command(cache)
    result = build(Path(cache), "demo", small_recipe())
    counts = result.clips
    assert counts.done + counts.quarantined + counts.pending == counts.manifest
    return 0 if counts.pending == 0 else 1


def _command(cache: str) -> int:
    from cli import app

    small = ("--set", "run.shard_clips=6", "--set", f"run.batch.motion={BLOCK}", "--set", STRIDE)
    try:
        app(["build", "--dataset", "demo", "--cache", cache, "--preset", "demo", *small])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


if __name__ == "__main__":
    main(sys.stdin)  # type: ignore[arg-type]
