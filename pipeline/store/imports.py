"""Take features that others made into a cache, as a stage "imported" with a key of its own.

Nobody here knows how they were made, so the key holds what the user declares (model, weights, window, stride, ...)
and the SHA-256 of the numbers themselves: other numbers, another key. Clips keep their address, so imported
features stand beside the stages that were computed here, in one reader.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ClipError, UserError
from pipeline.events import Event, Listener, silent
from pipeline.spec import canonical_json, digest
from pipeline.store.export import HDF5_FORMAT, file_name
from pipeline.store.gc import IMPORTED
from pipeline.store.layout import ArraySpec
from pipeline.store.reader import Cache
from pipeline.store.records import QuarantineEntry
from pipeline.store.writer import ShardBuilder, Stage, create_stage

SHARD_BYTES = 64 * 2**20
CHUNK_ROWS = 64

Loaded = tuple[
    dict[str, np.ndarray], dict[str, Any]
]  # the arrays [T, ...] of a clip, and what is told about it
Source = Mapping[str, Callable[[], Loaded]]  # file_name(clip_id) -> the clip


@dataclass(frozen=True)
class Candidate:
    """A clip of the dataset that the source has."""

    clip_key: str
    clip_id: str
    load: Callable[[], Loaded]


def import_features(
    root: Path, dataset: str, source: Source, declared: Mapping[str, Any], listen: Listener = silent
) -> dict[str, Any]:
    """Write the clips of a source into the cache as a stage "imported".

    Args:
        root: the cache; the files of the dataset must have been read (`read_files`), or clips have no address.
        dataset: whose clips these are.
        source: of `npy_source` or `hdf5_source`.
        declared: what decides the numbers, as far as the user knows; part of the key. Where it has a whole number
            "stride", clips without start_frames get 0, stride, 2 * stride, ...

    Returns {"stage", "key", "path", "clips", "missing", "unknown", "refused"}: clips there now, clips without a
    file, files without a clip, clips in quarantine because their arrays differ from the first one's or are not
    finite. Raises UserError when no file belongs to a clip.
    """
    stride = declared.get("stride")
    if type(stride) is int and stride < 1:
        raise UserError(f"the facts declare stride {stride}; give the frames between two windows, 1 or more")
    cache = Cache(root)
    keys = cache.clip_keys(dataset)
    found = {
        key: Candidate(key, name, source[file_name(name)])
        for name, key in keys.items()
        if file_name(name) in source
    }
    if not found:
        raise UserError(
            f"none of the {len(source)} files is named after one of the {len(keys)} readable clips of '{dataset}'; "
            "`bmoe-cache export --to npy` shows the names"
        )
    specs, lengths, sha256, refused = _examine(found.values(), listen)
    facts = {"stage": IMPORTED, "version": 1, "declared": dict(declared), "sha256": sha256}
    fitting = SHARD_BYTES // sum(spec.row_bytes for spec in specs)
    wanted = max(*lengths, min(sum(lengths), fitting))
    stage = create_stage(root, facts, digest(facts), specs, -(-wanted // CHUNK_ROWS) * CHUNK_ROWS, {})
    for key, error in refused.items():
        stage.add_quarantine(QuarantineEntry.of(key, found.pop(key).clip_id, IMPORTED, error))
    _write(stage, found.values(), declared, listen)
    return {
        "stage": IMPORTED,
        "key": stage.key,
        "path": str(stage.folder.path),
        "clips": sum(len(receipt.clips) for receipt in stage.receipts()),
        "missing": len(keys) - sum(file_name(name) in source for name in keys),
        "unknown": len(source.keys() - {file_name(name) for name in keys}),
        "refused": len(stage.quarantine()),
    }


def load_declared(path: Path) -> dict[str, Any]:
    """The YAML of what a user declares about features. Raises UserError unless it is a mapping of plain values."""
    import yaml

    try:
        declared = yaml.safe_load(path.read_text())
        canonical_json(declared)
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable as YAML of plain values ({error})") from None
    if not isinstance(declared, dict) or not declared:
        raise UserError(f"{path}: say what made these features, e.g. `model: videomaev2-g` and `stride: 4`")
    return declared


def _examine(
    found: Collection[Candidate], listen: Listener
) -> tuple[list[ArraySpec], list[int], str, dict[str, ClipError]]:
    """The arrays as the first usable clip has them, rows of each clip, SHA-256 of all, and the clips that differ."""
    specs: list[ArraySpec] = []
    lengths: list[int] = []
    sums: dict[str, str] = {}
    refused: dict[str, ClipError] = {}
    for number, candidate in enumerate(found, 1):
        try:
            arrays, _ = candidate.load()
            mine = [_spec(name, rows) for name, rows in sorted(arrays.items())]
            counts = {len(rows) for rows in arrays.values()}
            specs = specs or mine
            if mine != specs or len(counts) != 1:
                raise ClipError("E_SHAPE", f"it is {_shown(mine)}, and the first clip {_shown(specs)}")
        except ClipError as error:
            refused[candidate.clip_key] = error
            continue
        content = hashlib.sha256(_shown(specs).encode())
        for _, rows in sorted(arrays.items()):
            content.update(np.ascontiguousarray(rows, rows.dtype.newbyteorder("<")).data)
        sums[candidate.clip_key] = content.hexdigest()
        lengths += counts
        listen(Event("step", "reading features", number, len(found)))
    if not specs:
        raise UserError(f"no clip can be used; the first: {next(iter(refused.values()))}")
    return specs, lengths, digest(sums), refused


def _spec(name: str, rows: np.ndarray) -> ArraySpec:
    try:
        if rows.ndim == 0 or not rows.size:
            raise ValueError(f"shape {list(rows.shape)} is not [T, ...] with T from 1")
        return ArraySpec(name, rows.dtype.name, rows.shape[1:], CHUNK_ROWS, "raw")
    except ValueError as error:
        raise ClipError("E_SHAPE", str(error)) from None


def _shown(specs: list[ArraySpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} {['T', *spec.row_shape]}" for spec in specs)


def _write(stage: Stage, found: Collection[Candidate], declared: Mapping[str, Any], listen: Listener) -> None:
    done = {clip.clip_key for receipt in stage.receipts() for clip in receipt.clips}
    todo = [candidate for candidate in found if candidate.clip_key not in done]
    stride = declared.get("stride")
    builder: ShardBuilder | None = None
    for number, candidate in enumerate(todo, 1):
        arrays, facts = candidate.load()
        n = len(next(iter(arrays.values())))
        if type(stride) is int:
            facts = {"start_frames": list(range(0, n * stride, stride)), **facts}
        if builder is not None and not builder.room_for(n):
            builder.commit()
            builder = None
        builder = builder or ShardBuilder(stage, stage.next_shard)
        try:
            builder.add(candidate.clip_key, candidate.clip_id, arrays, facts)
        except ClipError as error:
            stage.add_quarantine(QuarantineEntry.of(candidate.clip_key, candidate.clip_id, IMPORTED, error))
        listen(Event("step", "importing", number, len(todo)))
    if builder is not None and builder.rows:
        builder.commit()


# ----------------------------------------------------------------------------------------------- sources


def npy_source(folder: Path) -> Source:
    """<clip>.npy with [T, ...], named as `export --to npy` does: most clip ids are their own name."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of .npy files")

    def loader(path: Path) -> Callable[[], Loaded]:
        def load() -> Loaded:
            try:
                return {"features": np.load(path, mmap_mode="r", allow_pickle=False)}, {}
            except (OSError, ValueError, EOFError) as error:
                raise ClipError("E_UNREADABLE", f"{path.name} is no .npy file of numbers ({error})") from None

        return load

    return {path.stem: loader(path) for path in sorted(folder.glob("*.npy"))}


def hdf5_source(path: Path) -> Source:
    """An HDF5 file: as `export --to hdf5` writes it, or one dataset [T, ...] per clip, named by its id.

    Raises UserError when it is no HDF5 file, or keeps its numbers in other files.
    """
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path} is not a readable HDF5 file ({error})") from None
    datasets: dict[str, h5py.Dataset] = {}
    file.visititems(
        lambda name, item: datasets.update({name: item}) if isinstance(item, h5py.Dataset) else None
    )
    foreign = [name for name, data in datasets.items() if data.external or data.is_virtual]
    if foreign:
        raise UserError(f"{path}: '{foreign[0]}' lies in another file; copy it in (h5repack)")
    if file.attrs.get("format") != HDF5_FORMAT:
        return {file_name(name): _one_dataset(data) for name, data in datasets.items()}
    arrays = {
        name.removeprefix("arrays/"): data for name, data in datasets.items() if name.startswith("arrays/")
    }
    table = zip(
        file["clip_id"].asstr()[:],
        file["row_start"][:],
        file["n_rows"][:],
        file["facts"].asstr()[:],
        strict=True,
    )
    return {
        file_name(name): _some_rows(arrays, int(start), int(start + n), json.loads(facts))
        for name, start, n, facts in table
    }


def _one_dataset(data: Any) -> Callable[[], Loaded]:
    return lambda: ({"features": data[()]}, {})


def _some_rows(
    arrays: Mapping[str, Any], start: int, stop: int, facts: dict[str, Any]
) -> Callable[[], Loaded]:
    return lambda: ({name: data[start:stop] for name, data in arrays.items()}, facts)
