"""What is under way in a cache: unfinished jobs, how far they are, and who works on them."""

from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.store import layout, lease
from pipeline.store.jobs import Job, JobShard, first_missing, folder_of, is_committed, load_jobs
from pipeline.store.wip import read_clips


def in_flight(cache: Path, dataset: str) -> list[dict[str, Any]]:
    """The unfinished jobs of a dataset, by number.

    Each is {"job", "stages", "clips", "logged", "running", "host", "pid"}: `logged` are the clips that are finished
    in every stage it still has to write, `running` tells whether a living process has its lease.
    """
    lines = []
    for job in load_jobs(cache):
        shards = [shard for shard in job.shards if not is_committed(cache, shard)]
        if job.dataset != dataset or not shards:
            continue
        owner = _owner(cache, job)
        lines.append(
            {
                "job": job.number,
                "stages": [shard.stage for shard in shards],
                "clips": len(job.clips),
                "logged": min(_position(cache, job, shard) for shard in shards),
                "running": owner is not None,
                "host": owner.host if owner else None,
                "pid": owner.pid if owner else None,
            }
        )
    return lines


def flight_text(lines: list[dict[str, Any]]) -> list[str]:
    """The same for people, a line each."""
    return [
        f"job {line['job']}: {line['logged']} of {line['clips']} clips finished, "
        + (f"running on {line['host']}, process {line['pid']}" if line["running"] else "interrupted")
        for line in lines
    ]


def _owner(cache: Path, job: Job) -> lease.Owner | None:
    found = lease.turns(folder_of(cache), job.number)
    newest = found[max(found)] if found else None
    if newest is None or not lease.Watch().alive(newest):
        return None
    try:
        return lease.parse_lease(newest.read_bytes())
    except (OSError, ValueError, TypeError):
        return None


def _position(cache: Path, job: Job, shard: JobShard) -> int:
    """Clips of the job up to the first that a stage has not finished."""
    try:
        arrays = layout.load_stage(shard.folder(cache)).arrays
    except UserError:  # not made yet
        return 0
    have = first_missing(
        read_clips(shard.folder(cache), shard.shard, job.id, arrays, check=False), shard.clips
    )
    return len(job.clips) if have == len(shard.clips) else job.clips.index(shard.clips[have])
