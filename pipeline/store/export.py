"""Write the features of a dataset in the formats of others: npy, npz, hdf5, webdataset, hf (Parquet).

Beside them lies features.json: what the numbers are, and of every clip its file, split, labels, frames, fps and
window starts. Its "database" has the form that ActionFormer and TriDet read as `json_file`; feat_stride,
num_frames and default_fps are the options of their configuration, whose mismatch is their users' commonest error.
A clip without features is listed as missing: their loaders would drop it without a word.
"""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from pipeline.clip import Clip
from pipeline.errors import UserError
from pipeline.events import Event, Listener, silent
from pipeline.store import atomic
from pipeline.store.reader import Cache, StageReader
from pipeline.store.records import ClipRows

LONGEST_NAME = 180  # bytes, so that an extension still fits into the 255 of a file system
TAR_CLIPS = 1000
ROW_GROUP_BYTES = 64 << 20  # bounds the memory, and the values of a column, whose offsets are int32
HDF5_FORMAT = "bmoe-cache features 1"


@dataclass(frozen=True)
class Item:
    """One clip to export: its row in the manifest, its rows in the stage, the name of its files, its labels by id."""

    name: str
    clip: Clip
    labels: Mapping[int, str]
    rows: ClipRows
    stage: StageReader

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array of the stage, [n_rows, *row_shape]."""
        return {array: self.stage.read(self.rows.clip_key, array) for array in self.stage.arrays}


def file_name(clip_id: str) -> str:
    """A name that is safe in any folder, another one for every clip id; most ids are their own name.

    Everything but letters, digits and _.-~:=@+ is percent-encoded, and so is a leading dot.
    """
    name = quote(clip_id, safe=":=@+", errors="surrogatepass")
    if name[:1] in ("", "."):
        name = "%2E" + name[1:]
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 33]}~{sha256(name.encode()).hexdigest()[:32]}"
    return name


def export(
    root: Path, dataset: str, stage: str, to: str, out: Path, listen: Listener = silent
) -> dict[str, Any]:
    """Write a stage of the last build of a dataset into the new folder `out`; every read is checked.

    Returns features.json without its clips, as {"format", "clips", "missing", ...}. Raises UserError when the
    stage was not built, nothing is there to export, or out is not empty.
    """
    if to not in WRITERS:
        raise UserError(f"--to {to}: choose one of {', '.join(WRITERS)}")
    cache = Cache(root, check=True)
    manifest = cache.dataset(dataset)
    names = {label.id: label.name for label in manifest.taxonomy.labels}
    built = cache.builds(dataset)["stages"]
    if stage not in built:
        raise UserError(f"'{dataset}' has no stage '{stage}'; choose one of {', '.join(sorted(built))}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder; choose another --out")
    reader = cache.stage(stage, built[stage])
    keys = cache.clip_keys(dataset, "skeleton" if stage == "skeleton" else "video")
    items, missing = [], []
    for clip in manifest.clips:
        rows = reader.clips.get(keys.get(clip.clip_id, ""))
        if rows is None:
            missing.append(clip.clip_id)
        else:
            labels = {i: names.get(i, str(i)) for i in clip.label_ids or ()}
            items.append(Item(file_name(clip.clip_id), clip, labels, rows, reader))
    if not items:
        raise UserError(f"no clip of '{dataset}' has rows in stage '{stage}'; run `bmoe-cache build`")
    out.mkdir(parents=True, exist_ok=True)

    def watched() -> Iterator[Item]:
        for number, item in enumerate(items, 1):
            yield item
            listen(Event("step", "exporting", number, len(items)))

    WRITERS[to](out, watched(), reader)
    about = _about(dataset, stage, built[stage], reader, items)
    record = {**about, "missing": missing, "database": {item.name: _entry(item) for item in items}}
    atomic.write_bytes(
        out / "features.json", json.dumps(record, indent=1).encode() + b"\n"
    )  # last: all is there
    return {**about, "format": to, "out": str(out), "clips": len(items), "missing": len(missing)}


def _about(dataset: str, name: str, key: str, stage: StageReader, items: list[Item]) -> dict[str, Any]:
    rates = {_fps(item.rows.facts) for item in items}
    return {
        "dataset": dataset,
        "stage": name,
        "key": key,
        "facts": stage.facts,
        "arrays": {n: {"dtype": a.dtype, "row_shape": list(a.row_shape)} for n, a in stage.arrays.items()},
        "feat_stride": stage.facts.get("stride"),
        "num_frames": stage.facts.get("window"),
        "default_fps": rates.pop() if len(rates) == 1 else None,
    }


def _entry(item: Item) -> dict[str, Any]:
    """A clip in the form of ActionFormer's database; its labels hold from its first frame to its last."""
    facts = item.rows.facts
    fps, frames = _fps(facts), facts.get("frames")
    duration = frames / fps if fps and frames else None
    return {
        "clip_id": item.clip.clip_id,
        "video_path": item.clip.video_path,
        "subset": item.clip.split,
        "fps": fps,
        "frames": frames,
        "duration": duration,
        "start_frames": facts.get("start_frames"),
        "shape": facts.get("shape"),  # of skeletons: [frames, persons, joints], which lie one a row
        "annotations": [
            {"label": name, "label_id": i, "segment": [0.0, duration]} for i, name in item.labels.items()
        ],
    }


def _fps(facts: Mapping[str, Any]) -> float | None:
    return facts["fps"][0] / facts["fps"][1] if facts.get("fps") else None


# ----------------------------------------------------------------------------------------------- formats


def write_npy(out: Path, items: Iterator[Item], stage: StageReader) -> None:
    """<array>/<clip>.npy, [n_rows, *row_shape]; an array with views as <array>/<view>/<clip>.npy, [n_rows, D]."""
    views = list(stage.facts.get("views", ()))
    for item in items:
        for array, rows in item.arrays().items():
            split = bool(views) and rows.ndim == 3 and rows.shape[1] == len(views)
            parts = (
                {f"{array}/{file_name(view)}": rows[:, i] for i, view in enumerate(views)}
                if split
                else {array: rows}
            )
            for folder, part in parts.items():
                (out / folder).mkdir(parents=True, exist_ok=True)
                np.save(out / folder / f"{item.name}.npy", part)


def write_npz(out: Path, items: Iterator[Item], stage: StageReader) -> None:
    """<clip>.npz with every array."""
    for item in items:
        np.savez(out / f"{item.name}.npz", **item.arrays())  # type: ignore[arg-type]


def write_hdf5(out: Path, items: Iterator[Item], stage: StageReader) -> None:
    """features.h5: one contiguous dataset per array over the rows of all clips, and the table of the clips.

    Clip i has rows row_start[i] to row_start[i] + n_rows[i]; facts are JSON. A dataset per clip would be read a
    sixth as fast.
    """
    import h5py

    listed = list(items)
    n_rows = np.array([item.rows.n_rows for item in listed], np.int64)
    starts = np.cumsum(n_rows) - n_rows
    with h5py.File(out / "features.h5", "w") as file:
        file.attrs["format"] = HDF5_FORMAT
        file.attrs["facts"] = json.dumps(stage.facts)
        file["clip_id"] = [item.clip.clip_id for item in listed]
        file["facts"] = [json.dumps(item.rows.facts) for item in listed]
        file["n_rows"], file["row_start"] = n_rows, starts
        group = file.create_group("arrays")
        for array, spec in stage.arrays.items():
            data = group.create_dataset(array, (int(n_rows.sum()), *spec.row_shape), spec.dtype)
            for item, start, n in zip(listed, starts, n_rows, strict=True):
                data[start : start + n] = stage.read(item.rows.clip_key, array)


def write_webdataset(out: Path, items: Iterator[Item], stage: StageReader) -> None:
    """000000.tar, ... of 1,000 clips: <clip>.<array>.npy and <clip>.json. WebDataset ends a key at the first dot."""
    with ExitStack() as stack:
        for number, item in enumerate(items):
            if number % TAR_CLIPS == 0:
                stack.close()
                tar = stack.enter_context(tarfile.open(out / f"{number // TAR_CLIPS:06d}.tar", "w"))
            key = item.name.replace(".", "%2E")
            for array, rows in item.arrays().items():
                buffer = io.BytesIO()
                np.save(buffer, rows)
                _add(tar, f"{key}.{array}.npy", buffer.getvalue())
            _add(tar, f"{key}.json", json.dumps(_entry(item)).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no time, no owner: equal features give equal files
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_hf(out: Path, items: Iterator[Item], stage: StageReader) -> None:
    """data/<split>.parquet with a row per clip, arrays as nested lists; `datasets.load_dataset(out)` reads it."""
    import pyarrow.parquet as pq
    import yaml

    row_bytes = sum(spec.row_bytes for spec in stage.arrays.values())
    waiting: dict[str, list[Item]] = {}
    filled: Counter[str] = Counter()  # bytes that wait, by split
    writers: dict[str, pq.ParquetWriter] = {}
    (out / "data").mkdir()
    with ExitStack() as stack:

        def flush(split: str) -> None:
            table = _table(waiting.pop(split), stage)
            del filled[split]
            if split not in writers:
                path = out / "data" / f"{file_name(split)}.parquet"
                writers[split] = stack.enter_context(pq.ParquetWriter(path, table.schema))
            writers[split].write_table(table)

        for item in items:
            split, size = item.clip.split, item.rows.n_rows * row_bytes
            if split in waiting and filled[split] + size > ROW_GROUP_BYTES:
                flush(split)
            waiting.setdefault(split, []).append(item)
            filled[split] += size
        for split in list(waiting):
            flush(split)
    files = [{"split": split, "path": f"data/{file_name(split)}.parquet"} for split in sorted(writers)]
    card = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": files}]}, sort_keys=False)
    (out / "README.md").write_text(f"---\n{card}---\n")


def _table(items: list[Item], stage: StageReader) -> Any:
    import pyarrow as pa

    columns = {
        "clip_id": pa.array([item.clip.clip_id for item in items]),
        "label_ids": pa.array([list(item.labels) for item in items], pa.list_(pa.int32())),
        "label_names": pa.array([list(item.labels.values()) for item in items], pa.list_(pa.string())),
        "fps": pa.array([_fps(item.rows.facts) for item in items], pa.float64()),
        "frames": pa.array([item.rows.facts.get("frames") for item in items], pa.int64()),
        "start_frames": pa.array(
            [item.rows.facts.get("start_frames") for item in items], pa.list_(pa.int64())
        ),
    }
    for array, spec in stage.arrays.items():
        rows, offsets = stage.read_many([item.rows.clip_key for item in items], array)
        nested = pa.array(rows.ravel())
        for size in reversed(spec.row_shape):
            nested = pa.ListArray.from_arrays(np.arange(0, len(nested) + 1, size), nested)
        columns[array] = pa.ListArray.from_arrays(offsets, nested)  # int64 that does not fit is an error
    return pa.table(columns)


WRITERS: dict[str, Callable[[Path, Iterator[Item], StageReader], None]] = {
    "npy": write_npy,
    "npz": write_npz,
    "hdf5": write_hdf5,
    "webdataset": write_webdataset,
    "hf": write_hf,
}
