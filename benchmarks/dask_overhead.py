"""What Dask costs over plain calls, on jobs of about a second, and what a second worker brings.

    python -m benchmarks.dask_overhead [--jobs 16] [--clips 4] [--out]

The same jobs (all stages of the demo preset), each time from nothing to committed shards: in this process, on one Dask
worker, on two. Encoders are loaded before the clock starts. Every worker computes with one thread and has one decoder,
and both are held to one core of their own: else one worker takes the half of the core that the second one is to bring.
The scheduler and this client take what they need beside them.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from distributed import Client

from benchmarks.harness import arguments, race, ratio, report
from benchmarks.memory import make_cache
from pipeline.events import EventFile, silent
from pipeline.manifest import manifest_path, read_manifest
from pipeline.media import media_path, read_media
from pipeline.presets import load_recipe
from pipeline.run.board import Board
from pipeline.run.build import read_files
from pipeline.run.crew import Crew, SerialCrew, WorkerSpec, run_jobs
from pipeline.run.dask_crew import DaskCrew, local_cluster
from pipeline.store.layout import events_path


def hold(cores: set[int]) -> None:
    """Hold all threads of this process, and what it starts from now on, to these cores."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--clips", type=int, default=4, help="clips of a job")
    parser.add_argument("--folder", type=Path, default=Path("build/dask_overhead"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    clips = options.jobs * options.clips
    cache = make_cache(options.folder, clips, videos=24).absolute()
    manifest = read_manifest(manifest_path(cache, "bench"))
    read_files(cache, manifest, silent)
    media = read_media(media_path(cache, "bench"))
    recipe = load_recipe("demo", overrides=[f"run.shard_clips={options.clips}"])
    stages = tuple(recipe.spec.stages())
    events = events_path(cache, "bench")
    with EventFile(events):  # so that there is one
        pass
    spec = WorkerSpec(cache, "bench", recipe, stages, 1, 1 << 30, events)

    every_core = os.sched_getaffinity(0)

    def run(crew: Crew) -> Callable[[], int]:
        def jobs() -> int:
            hold({0} if crew is serial else every_core)  # its decoder starts in its first round
            for folder in ("stages", "jobs"):
                shutil.rmtree(cache / folder, ignore_errors=True)
            board = Board(cache, recipe, stages, manifest, media)
            return sum(result.clips["motion"] for result in run_jobs(board, crew, silent, lambda: None))

        return jobs

    with contextlib.ExitStack() as stack:
        serial = stack.enter_context(SerialCrew(spec, silent))
        crews = {}
        for count in (1, 2):
            cluster = stack.enter_context(local_cluster(count, threads=1))
            with Client(cluster) as client:
                for core, worker in enumerate(client.scheduler_info()["workers"]):
                    client.run(hold, {core}, workers=[worker])
            crew = DaskCrew(spec, count, scheduler=cluster.scheduler_address)
            crews[f"dask{count}"] = stack.enter_context(crew)
        contenders = {"serial": run(serial), **{name: run(crew) for name, crew in crews.items()}}
        times = race(contenders, clips, options.rounds)
    report(
        "dask_overhead",
        {
            "jobs": options.jobs,
            "clips": clips,
            "job_seconds": round(times["serial"].seconds / options.jobs, 3),
            **{name: timing.record(clips) for name, timing in times.items()},
            "dask_over_serial": ratio(times["dask1"], times["serial"]),
            "wanted_at_most": 1.02,
            "two_workers": ratio(times["dask1"], times["dask2"]),
            "two_workers_wanted": 1.8,
            "cores": os.cpu_count(),
        },
        options.out,
    )


if __name__ == "__main__":
    main()
