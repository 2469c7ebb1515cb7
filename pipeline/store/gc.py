"""What a cache could do without, and its removal.

Reached is every stage that the last build of a dataset with some preset used, and what those read; and every
imported stage, since nobody here can make it again. The rest, and what killed builds left, is waste.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.store import layout, lease
from pipeline.store.jobs import folder_of, is_committed, job_numbers, job_path, load_jobs
from pipeline.store.layout import load_folder
from pipeline.store.verify import leftovers
from pipeline.store.writer import Stage

GRACE_S = 3600.0  # a younger temporary or shard without a receipt may belong to a build that is running
IMPORTED = "imported"


@dataclass(frozen=True)
class Waste:
    """Something that can go: `path` is relative to the cache.

    `kind` is "stage", "job", "leftover", "wip" or "set aside".
    """

    path: str
    kind: str
    reason: str
    bytes: int


def reached(root: Path) -> dict[str, list[str]]:
    """Key of every stage that a build reaches -> who reaches it, as "dataset/preset".

    Raises UserError when the record of a build is damaged: then nobody knows.
    """
    users: dict[str, set[str]] = {}
    for path in sorted(root.glob("builds/*.json")):
        for preset, stages in layout.load_build(root, path.stem)["presets"].items():
            for key in stages.values():
                users.setdefault(key, set()).add(f"{path.stem}/{preset}")
    infos = {info.key: info for _, info in _stages(root)}
    todo = list(users)
    while todo:
        key = todo.pop()
        for read in infos[key].facts.get("reads", {}).values() if key in infos else ():
            if not users[key] <= users.setdefault(read, set()):
                users[read] |= users[key]
                todo.append(read)
    return {key: sorted(names) for key, names in users.items()}


def find_waste(root: Path, now: float | None = None) -> list[Waste]:
    """Everything that could go, by path. Damaged stages are left to `verify`."""
    layout.check_cache(root)
    root = root.absolute()
    users, old = reached(root), (time.time() if now is None else now) - GRACE_S
    waste, watch = [], lease.Watch()

    def note(path: Path, kind: str, reason: str) -> None:
        waste.append(Waste(path.relative_to(root).as_posix(), kind, reason, size(path)))

    busy, wanted = set(), set()  # (key, shard): a living build writes it; some job will go on with it
    for job in load_jobs(root):
        shards = {(shard.key, shard.shard) for shard in job.shards}
        if watch.held(folder_of(root), job.number):
            busy |= shards
        elif all(is_committed(root, shard) or shard.key not in users for shard in job.shards):
            if _older(job_path(root, job.number), old):
                note(job_path(root, job.number), "job", "all that a build reaches of it is committed")
            continue
        wanted |= shards
    numbers = {str(number) for number in job_numbers(root)}
    for path in sorted(folder_of(root).glob("*.lease")):
        if path.name.partition(".")[0] not in numbers and _older(path, old):
            note(path, "leftover", "of a build that was killed")
    for folder, info in _stages(root):
        if any(key == info.key for key, _ in busy):
            continue  # nothing of a stage that is being written
        if info.key not in users and folder.stage != IMPORTED:
            note(folder.path, "stage", "no build reaches it")
            continue
        stage = Stage(folder, info)
        for path in leftovers(stage):
            if _older(path, old):
                note(path, "leftover", "of a build that was killed")
        committed = set(layout.committed_shards(folder))
        for path in sorted((folder.path / "wip").glob("*")):
            number = path.name.partition(".")[0]
            shard = int(number) if number.isdecimal() else -1
            if (info.key, shard) in busy or not _older(path, old):
                continue
            if shard in committed:
                note(path, "wip", "its shard is committed")
            elif (info.key, shard) not in wanted:
                note(path, "wip", "no job goes on with it")
        for path in sorted((folder.path / "damaged").glob("*")):
            note(path, "set aside", "by `verify --repair`")
    folders = ("", "builds/", "index/", "jobs/", "manifests/")
    for pattern in (*(f"{folder}.*.tmp" for folder in folders), "stages/*/.*.gc"):
        for path in sorted(root.glob(pattern)):
            if _older(path, old):
                note(path, "leftover", "of a command that was killed")
    for path in layout.stage_folders(root):
        if not (path / "stage.json").exists() and not any(path.glob("receipts/*.json")) and _older(path, old):
            note(path, "leftover", "of a build that was killed as it began")
    return sorted(waste, key=lambda item: item.path)


def remove(root: Path, waste: Waste) -> None:
    """Delete it. A folder is renamed first, so that a kill leaves no half of a stage behind."""
    path = root / waste.path
    if path.is_dir():
        doomed = path.with_name(f".{path.name}.gc")
        path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the first folder that is not empty ends it
        os.removedirs(path.parent)


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _stages(root: Path) -> Iterator[tuple[layout.StageDir, layout.StageInfo]]:
    for path in layout.stage_folders(root.absolute()):
        with contextlib.suppress(UserError):
            yield load_folder(path)


def _older(path: Path, time_s: float) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime < time_s
    return False
