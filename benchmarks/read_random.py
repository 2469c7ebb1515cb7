"""Random clips of 4 to 36 rows: our mapped reader against np.memmap, np.load, h5py, zarr-python and zarrs.

    python -m benchmarks.read_random

Every contender copies the rows of each clip into one buffer. The Zarr tools open the very files that we map; they
read a tenth of the clips, since a call costs them about a millisecond, and seconds are compared per row: ours reads
all clips in their rounds too, as a tenth takes it 6 ms, too little to time.
"""

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr

from benchmarks.flat import World, make_world
from benchmarks.harness import Timing, arguments, race, ratio, report

WANTED = {"memmap": 0.90, "npy": 6, "h5py": 2, "zarr": 100, "zarrs": 40}
ZARR_SHARE = 10


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--clips", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder) / "cache", options.clips)
        order = np.random.default_rng(1).permutation(options.clips).tolist()
        few = order[: max(options.clips // ZARR_SHARE, 1)]
        readers = contenders(world, Path(folder))
        fast = race({n: taker(r, world, order) for n, r in readers.items() if n not in ("zarr", "zarrs")},
                    rows_of(world, order), options.rounds)  # fmt: skip
        whole, tenth = rows_of(world, order), rows_of(world, few)
        all_of_ours = taker(readers["ours"], world, order)
        zarrs = {n: taker(r, world, few) for n, r in readers.items() if n in ("zarr", "zarrs")}
        slow = race({"ours": lambda: all_of_ours() - whole + tenth, **zarrs}, tenth, options.rounds)
    ratios = {name: ratio(timing, fast["ours"]) for name, timing in fast.items() if name != "ours"}
    per_row = Timing(tuple(seconds * tenth / whole for seconds in slow["ours"].rounds))
    ratios |= {name: ratio(timing, per_row) for name, timing in slow.items() if name != "ours"}
    measured = {"clips": options.clips, "rows": rows_of(world, order), "row_bytes": world.rows[0].nbytes,
                "ours": fast["ours"].record(options.clips), "times_ours": ratios, "wanted": WANTED,
                "absent": sorted(WANTED.keys() - ratios.keys())}  # fmt: skip
    report("read_random", measured, options.out)


def rows_of(world: World, order: list[int]) -> int:
    return int(sum(world.offsets[i + 1] - world.offsets[i] for i in order))


def taker(read: Callable[[int], Any], world: World, order: list[int]) -> Callable[[], int]:
    """Copy clip after clip into one buffer; the rows copied."""
    buffer = np.empty((int(np.diff(world.offsets).max()), world.rows.shape[1]), world.rows.dtype)

    def run() -> int:
        count = 0
        for i in order:
            rows = read(i)
            buffer[: len(rows)] = rows
            count += len(rows)
        return count

    return run


def contenders(world: World, folder: Path) -> dict[str, Callable[[int], Any]]:
    starts = world.offsets.tolist()
    world.rows.tofile(folder / "flat.bin")
    flat = np.memmap(folder / "flat.bin", world.rows.dtype, "r", shape=world.rows.shape)
    (folder / "npy").mkdir()
    files = [folder / "npy" / f"{i}.npy" for i in range(len(world.keys))]
    for i, path in enumerate(files):
        np.save(path, world.rows[starts[i] : starts[i + 1]])
    with h5py.File(folder / "flat.h5", "w") as file:
        file["rows"] = world.rows
    data = h5py.File(folder / "flat.h5")["rows"]
    read, keys = world.reader.read, world.keys
    places = [world.reader.clips[key] for key in keys]
    first = [clip.shard * world.stage.shard_rows + clip.row_start for clip in places]

    def foreign(pipeline: str | None) -> Callable[[int], Any]:
        with zarr.config.set({"codec_pipeline.path": pipeline} if pipeline else {}):
            array = zarr.open_array(world.stage.folder.zarr / "features", mode="r")
        return lambda i: array[first[i] : first[i] + places[i].n_rows]

    found = {
        "ours": lambda i: read(keys[i], "features"),
        "memmap": lambda i: flat[starts[i] : starts[i + 1]],
        "npy": lambda i: np.load(files[i]),
        "h5py": lambda i: data[starts[i] : starts[i + 1]],
        "zarr": foreign(None),
    }
    return found | ({"zarrs": foreign("zarrs.ZarrsCodecPipeline")} if find_spec("zarrs") else {})


if __name__ == "__main__":
    main()
