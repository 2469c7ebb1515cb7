"""Jobs: which clips become which shards, decided once and written down before the work begins.

    jobs/<number>.json          a record: the clips decoded together, and the shard that every stage makes of them
    jobs/<number>.<turn>.lease  who works on it now (pipeline.store.lease)

A job stands until all its shards are committed. Killed before, it is found and goes on with the same clips and shard
numbers, so the cache becomes what it would have become. Its blocks are the clips that are lost together: batches
are packed within a block only, so whatever is computed again has the neighbours it had before.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, count
from pathlib import Path
from typing import Any

from pipeline.store import atomic, layout, lease, wip
from pipeline.store.layout import StageDir
from pipeline.store.records import damage, field, from_bytes, to_bytes


@dataclass(frozen=True)
class JobShard:
    """Shard number `shard` of a stage: these of the job's clips, in order. A new stage gets shards of `rows` rows."""

    stage: str
    key: str
    shard: int
    clips: tuple[str, ...]
    rows: int

    def folder(self, cache: Path) -> StageDir:
        return StageDir(cache, self.stage, self.key)


@dataclass(frozen=True)
class Job:
    """Clip keys decoded together, in order, in blocks of so many; and what becomes of them, upstream stages first."""

    number: int
    id: str
    dataset: str
    clips: tuple[str, ...]
    blocks: tuple[int, ...]
    shards: tuple[JobShard, ...]

    @property
    def ends(self) -> tuple[int, ...]:
        """Clips up to the end of each block."""
        return tuple(accumulate(self.blocks))

    def to_json(self) -> dict[str, Any]:
        place = {key: i for i, key in enumerate(self.clips)}
        shards = [{**vars(shard), "clips": [place[key] for key in shard.clips]} for shard in self.shards]
        return {
            "format_version": layout.FORMAT_VERSION,
            "id": self.id,
            "dataset": self.dataset,
            "clips": list(self.clips),
            "blocks": list(self.blocks),
            "shards": shards,
        }


def folder_of(cache: Path) -> Path:
    return cache / "jobs"


def job_path(cache: Path, number: int) -> Path:
    return folder_of(cache) / f"{number}.json"


def job_numbers(cache: Path) -> list[int]:
    """The numbers of all jobs, ascending."""
    return sorted(int(path.stem) for path in folder_of(cache).glob("*.json") if path.stem.isdecimal())


def leases_without_job(cache: Path) -> list[Path]:
    """Leases whose job is done: of whoever is about to give it back, or was killed just before that."""
    jobs = set(job_numbers(cache))  # before the leases: whoever ends a job strikes it off first
    leases = ((path.name.partition(".")[0], path) for path in folder_of(cache).glob("*.lease"))
    return [path for number, path in leases if number.isdecimal() and int(number) not in jobs]


def free_number(cache: Path, out: Collection[int] = ()) -> int:
    """A number above those of all jobs, of `out`, and of the leases of jobs that are done.

    A new job that took the number of such a lease would be begun once above it and once, when it is gone, anew.
    """
    jobs = job_numbers(cache)
    leases = (int(path.name.partition(".")[0]) for path in leases_without_job(cache))
    return max((*jobs, *out, *leases), default=-1) + 1


def load_job(cache: Path, number: int) -> Job | None:
    """A job; None when it is gone: all its shards are committed. Raises UserError when it is damaged."""
    path = job_path(cache, number)
    with damage(path):
        try:
            return parse_job(number, path.read_bytes())
        except FileNotFoundError:
            return None


def load_jobs(cache: Path) -> list[Job]:
    """All jobs, by number."""
    found = (load_job(cache, number) for number in job_numbers(cache))
    return [job for job in found if job is not None]


def parse_job(number: int, data: bytes) -> Job:
    """A job from its bytes. Raises ValueError and the like when it is damaged."""
    record = from_bytes(data)
    if field(record, "format_version", int) > layout.FORMAT_VERSION:
        raise ValueError(f"its format {record['format_version']} is newer than {layout.FORMAT_VERSION}")
    clips = tuple(map(str, field(record, "clips", list)))
    blocks = tuple(map(int, field(record, "blocks", list)))
    if sum(blocks) != len(clips) or min(blocks, default=0) < 1:
        raise ValueError("its blocks are not its clips")
    shards = tuple(
        JobShard(
            field(shard, "stage", str),
            field(shard, "key", str),
            field(shard, "shard", int),
            tuple(clips[i] for i in field(shard, "clips", list)),
            field(shard, "rows", int),
        )
        for shard in field(record, "shards", list)
    )
    for shard in shards:
        StageDir(Path(), shard.stage, shard.key)
    return Job(number, field(record, "id", str), field(record, "dataset", str), clips, blocks, shards)


def taken(cache: Path, jobs: Iterable[Job], stages: Mapping[str, str]) -> set[tuple[str, int]]:
    """(stage, number) of every shard of these stages (name -> key) that is committed or that a job makes."""
    shards = {
        (name, number)
        for name, key in stages.items()
        for number in layout.committed_shards(StageDir(cache, name, key))
    }
    return shards | {
        (shard.stage, shard.shard)
        for job in jobs
        for shard in job.shards
        if stages.get(shard.stage) == shard.key
    }


def reserved(folder: StageDir) -> int:
    """The first shard number above those that jobs make of this stage."""
    numbers = (
        shard.shard
        for job in load_jobs(folder.root)
        for shard in job.shards
        if (shard.stage, shard.key) == (folder.stage, folder.key)
    )
    return max(numbers, default=-1) + 1


def create_job(cache: Path, job: Job) -> bool:
    """Write a new job down; False when another process took its number."""
    return atomic.create(job_path(cache, job.number), to_bytes(job.to_json()))


def next_turn(cache: Path, job: Job) -> int:
    """A turn above all that worked on a job, as leases and logs tell."""
    told = set(lease.turns(folder_of(cache), job.number))
    for shard in job.shards:
        told |= set(wip.logs(shard.folder(cache), shard.shard))
    return max(told, default=0) + 1


def first_missing(found: Sequence[wip.Entry], wanted: Sequence[str]) -> int:
    """How many of the wanted clips a log has, in order."""
    pairs = zip(count(), found, wanted, strict=False)
    return next((i for i, entry, key in pairs if entry.clip_key != key), min(len(found), len(wanted)))


def is_committed(cache: Path, shard: JobShard) -> bool:
    return shard.folder(cache).receipt(shard.shard).exists()


def remove_logs(cache: Path, shard: JobShard) -> None:
    """Delete the logs of a shard that is committed."""
    folder = shard.folder(cache)
    for path in wip.logs(folder, shard.shard).values():
        path.unlink(missing_ok=True)
    with suppress(OSError):
        (folder.path / "wip").rmdir()


def remove_job(cache: Path, job: Job) -> None:
    """Strike a job out; its shards are committed, or nothing became of them.

    Its logs go first: whoever is killed in between leaves a job, which the next build strikes out, and no stray log.
    """
    for shard in job.shards:
        remove_logs(cache, shard)
    job_path(cache, job.number).unlink(missing_ok=True)
