"""Make a damaged cache good again. Nothing is deleted but frame indices, which hold what their recordings tell: what is
damaged moves to damaged/ in the folder of its stage.

Every function returns what it did, as a clause.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pipeline.store import atomic, layout, shard
from pipeline.store.layout import StageDir, StageInfo
from pipeline.store.records import Receipt, to_bytes
from pipeline.store.writer import ShardBuilder, Stage, write_metadata


def cache_json(root: Path) -> str:
    """Write cache.json anew: it holds the version of the format and nothing else that matters."""
    layout.write_cache_record(root)
    return "written again"


def frame_index(path: Path) -> str:
    """Take the damaged index of a recording away."""
    path.unlink()
    return "deleted; the next build makes it again"


def stage_json(folder: StageDir, info: StageInfo) -> str:
    """Restore stage.json from its copy in the Zarr group."""
    if folder.stage_json.exists():
        atomic.move(folder.stage_json, _aside(folder, "stage.json"))
    atomic.write_bytes(folder.stage_json, to_bytes(info.to_json()))
    return "restored from the Zarr group"


def zarr_json(folder: Path, metadata: Mapping[str, Any]) -> str:
    """Restore the zarr.json of a group or array from stage.json and the receipts."""
    write_metadata(folder, metadata)
    return "restored from stage.json and the receipts"


def quarantine(stage: Stage, good: bytes) -> str:
    """Keep the good lines of quarantine.jsonl."""
    atomic.move(stage.folder.quarantine, _aside(stage.folder, "quarantine.jsonl"))
    atomic.write_bytes(stage.folder.quarantine, good)
    return "the damaged lines are set aside: their clips are tried again"


def job(path: Path) -> str:
    """Set a damaged job aside: its clips are planned anew."""
    atomic.move(path, _free(path.parent / "damaged" / path.name))
    return "set aside: its clips are planned anew"


def lease(path: Path) -> str:
    """Set a damaged lease aside."""
    atomic.move(path, _free(path.parent / "damaged" / path.name))
    return "set aside: whoever builds next takes over"


def log(stage: Stage, path: Path, good_bytes: int) -> str:
    """Keep the frames of a log before the damaged one."""
    good = path.read_bytes()[:good_bytes]
    atomic.move(path, _aside(stage.folder, path.name))
    if good:
        atomic.write_bytes(path, good)
    return f"cut to {good_bytes} bytes: the clips behind are computed again"


def salvage(stage: Stage, receipt: Receipt, wrong: Collection[str]) -> str:
    """Copy the clips of a damaged shard that are not `wrong` to a new shard, then set the damaged one aside.

    Killed in between, both shards stand, and the larger number counts.
    """
    if not stage.folder.receipt(receipt.shard).exists():
        return "repaired with the other files of its shard"
    kept = [clip for clip in receipt.clips if clip.clip_key not in wrong]
    if kept:
        rows = {
            name: shard.open_shard(
                spec,
                stage.shard_rows,
                stage.folder.shard_file(spec, receipt.shard),
                receipt.files[name].bytes,
            )
            for name, spec in stage.arrays.items()
        }
        builder = ShardBuilder(stage, stage.next_shard)
        for clip in kept:
            span = slice(clip.row_start, clip.row_start + clip.n_rows)
            builder.add(clip.clip_key, clip.clip_id, {name: rows[name][span] for name in rows}, clip.facts)
        builder.commit()
    done = set_aside(stage, receipt.shard)
    return f"{len(kept)} clips kept in a new shard, {len(receipt.clips) - len(kept)} to be computed again; {done}"


def set_aside(stage: Stage, number: int) -> str:
    """Move a shard out of the way, its receipt first: from then on the shard does not exist."""
    folder = stage.folder
    target = _aside(folder, str(number))
    atomic.move(folder.receipt(number), target / "receipt.json")
    for spec in stage.arrays.values():
        if (file := folder.shard_file(spec, number)).exists():
            atomic.move(file, target / spec.name)
    return f"the shard is set aside in {target.relative_to(folder.path)}"


def _aside(folder: StageDir, name: str) -> Path:
    """A free path damaged/<name>, or damaged/<name>.1, ..."""
    return _free(folder.path / "damaged" / name)


def _free(path: Path) -> Path:
    """path, or path.1, ...: the first that does not exist."""
    target, number = path, 0
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.{number}")
    return target
