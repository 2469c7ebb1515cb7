"""Jobs on Dask workers: of this machine, of a running scheduler, or of SLURM jobs. Tickets in, results out.

Workers build their encoders once (a WorkerPlugin). A worker that is killed costs the clips of the block in flight: Dask
gives its ticket to another, which finds the lease taken, and the board hands the job out again. Nothing lives in
futures: the client may die, and the next one goes on with what the cache holds.
"""

import contextlib
import hashlib
import logging
import os
import pickle
import threading
import uuid
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.events import EventFile
from pipeline.run.board import Ticket
from pipeline.run.crew import Member, WorkerSpec, gpus
from pipeline.run.worker import ShardResult

try:
    import dask
    import yaml
    from distributed import (
        Client,
        Future,
        KilledWorker,
        Nanny,
        Scheduler,
        SpecCluster,
        WorkerPlugin,
        get_worker,
    )
    from distributed import wait as wait_for
except ImportError:
    raise UserError("--executor dask needs the extra dask: pip install 'bmoe-cache[dask]'") from None

FIRST_WORKER_S = 120.0  # for the first worker of this machine, or of a scheduler, to come


class MemberPlugin(WorkerPlugin):
    """Makes the member of a Dask worker when that starts, and ends it with the worker.

    A client that comes back finds the plugin of the one that died under the same name, and leaves it alone.
    """

    idempotent = True

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.name = f"bmoe-cache {hashlib.sha256(pickle.dumps(spec)).hexdigest()[:16]}"
        self.member: Member | None = None

    def setup(self, worker: Any) -> None:
        if self.spec.recipe.spec.source == "video":
            import torch

            torch.set_num_threads(worker.state.nthreads)  # Dask sets OMP_NUM_THREADS to 1
        self.member = Member(self.spec, EventFile(self.spec.events))
        self.one_job = threading.Lock()

    def teardown(self, worker: Any) -> None:
        if self.member is not None:
            self.member.__exit__(None, None, None)


def run_ticket(name: str, job: int, turn: int, job_id: str) -> ShardResult:
    """The task: run a job in the member of this worker."""
    plugin: Any = get_worker().plugins[name]
    with plugin.one_job:  # however many threads the worker has: the encoders use them all
        result: ShardResult = plugin.member.run(Ticket(job, turn, job_id))
    return result


def _resources(dask_worker: Any) -> list[str]:
    return list(dask_worker.state.total_resources)


class DaskCrew:
    """Workers of a Dask cluster.

    Args:
        count: workers to start; of a running scheduler those that are there are used.
        scheduler: address of a running one, or None.
        slurm: YAML file of the SLURM jobs, or None.
    """

    def __init__(
        self, spec: WorkerSpec, count: int, scheduler: str | None = None, slurm: Path | None = None
    ) -> None:
        self._spec, self._count = spec, count
        self._scheduler, self._slurm = scheduler, slurm
        self._out: dict[int, Future[ShardResult]] = {}

    def __enter__(self) -> "DaskCrew":
        with contextlib.ExitStack() as stack:
            address: Any = self._scheduler
            if address is None:
                address = stack.enter_context(
                    slurm_cluster(self._slurm) if self._slurm else local_cluster(self._count)
                )
                if self._slurm:
                    address.scale(self._count)
            try:
                self._client = stack.enter_context(Client(address, timeout=FIRST_WORKER_S))
                # A queue may be long; other workers come at once or never.
                self._client.wait_for_workers(1, timeout=None if self._slurm else FIRST_WORKER_S)
            except (OSError, TimeoutError) as error:
                where = self._scheduler or "this machine"
                raise UserError(
                    f"no Dask worker at {where} ({error}); start some, or check --scheduler"
                ) from None
            announced = self._client.run(_resources).values()
            self._resources = {"GPU": 1} if any("GPU" in names for names in announced) else {}
            plugin = MemberPlugin(self._spec)
            self._name = plugin.name
            self._client.register_plugin(plugin)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *details: Any) -> None:
        if self._scheduler and not self._out:
            self._client.unregister_worker_plugin(self._name)
        self._stack.__exit__(*details)

    @property
    def idle(self) -> int:
        return max(len(self._client.nthreads()), 1) - len(self._out)

    def start(self, ticket: Ticket) -> None:
        self._out[ticket.job] = self._client.submit(
            run_ticket, self._name, ticket.job, ticket.turn, ticket.id,
            key=f"job-{ticket.job}-{ticket.turn}-{uuid.uuid4().hex}", resources=self._resources, pure=False,
        )  # fmt: skip

    def finished(self, seconds: float) -> list[tuple[int, ShardResult | None]]:
        # As the current one: `wait` asks the client made last, which hears of another's futures too late.
        with contextlib.suppress(TimeoutError), self._client.as_current():
            wait_for(list(self._out.values()), timeout=seconds, return_when="FIRST_COMPLETED")
        ended: list[tuple[int, ShardResult | None]] = []
        for job, future in list(self._out.items()):
            if not future.done():
                continue
            del self._out[job]
            if future.status == "finished":
                ended.append((job, future.result()))
            elif future.cancelled() or isinstance(future.exception(), KilledWorker):
                ended.append((job, None))
            else:
                future.result()  # raises what the worker raised
        return ended


def local_cluster(count: int, threads: int | None = None) -> SpecCluster:
    """`count` workers of this machine, which share its cores; on GPUs one each. The memory budget is our own."""
    found = gpus()
    threads = threads or max((os.cpu_count() or 1) // count, 1)
    options: dict[str, Any] = {"nthreads": threads, "memory_limit": 0, "silence_logs": logging.ERROR}
    workers = {}
    for place in range(count):
        own: dict[str, Any] = {}
        if found:
            own = {"env": {"CUDA_VISIBLE_DEVICES": found[place % len(found)]}, "resources": {"GPU": 1}}
        workers[place] = {"cls": Nanny, "options": options | own}
    options = {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    # Dask would set MALLOC_TRIM_THRESHOLD_ too: then glibc maps every tensor anew, and gives it back at once.
    with dask.config.set({"distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": threads}}):
        return SpecCluster(workers, {"cls": Scheduler, "options": options}, silence_logs=logging.ERROR)


def slurm_cluster(path: Path) -> Any:
    """The cluster of a YAML file: arguments of dask_jobqueue.SLURMCluster. Raises UserError naming what is wrong."""
    from dask_jobqueue import SLURMCluster

    try:
        options = yaml.safe_load(path.read_text())
        if not isinstance(options, dict):
            raise TypeError("it holds no options")
        return SLURMCluster(**options)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; see docs/running.md for one to begin with") from None
    except (yaml.YAMLError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: no options of a SLURMCluster ({reason}); see docs/running.md") from None
