"""One shuffled epoch of batches of 256 clips, input only: ours against DataLoader over .npy, litdata and webdataset.

    python -m benchmarks.loader_epoch

Every contender yields the rows of a batch one behind the other. DataLoader runs with 0 and with 2 workers and the
faster counts. litdata and webdataset take part where they are installed.
"""

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from benchmarks.flat import World, make_world
from benchmarks.harness import arguments, race, ratio, report

BATCH = 256
WANTED = {"npy": 8, "litdata": 1.3, "webdataset": 4}


class NpyClips(Dataset[np.ndarray]):
    """A file per clip."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> np.ndarray:
        return np.load(self.files[i])


def joined(clips: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(clips)


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--clips", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder) / "cache", options.clips)
        times = race(contenders(world, Path(folder)), len(world.rows), options.rounds)
    workers = min(("npy0", "npy2"), key=lambda name: times[name].seconds)
    rivals = {"npy": times[workers]} | {
        name: times[name] for name in ("litdata", "webdataset") if name in times
    }
    measured = {"clips": options.clips, "batch": BATCH, "ours": times["ours"].record(options.clips), "npy": workers,
                "times_ours": {name: ratio(timing, times["ours"]) for name, timing in rivals.items()},
                "wanted": WANTED, "absent": sorted(WANTED.keys() - rivals.keys())}  # fmt: skip
    report("loader_epoch", measured, options.out)


def contenders(world: World, folder: Path) -> dict[str, Callable[[], int]]:
    clips = [world.rows[a:b] for a, b in zip(world.offsets[:-1], world.offsets[1:], strict=True)]
    dice = np.random.default_rng(1)

    def ours() -> int:
        order = dice.permutation(len(clips))
        batches = (order[i : i + BATCH] for i in range(0, len(order), BATCH))
        return sum(len(world.reader.read_many([world.keys[i] for i in b], "features")[0]) for b in batches)

    (folder / "npy").mkdir()
    files = [folder / "npy" / f"{i}.npy" for i in range(len(clips))]
    for path, rows in zip(files, clips, strict=True):
        np.save(path, rows)

    def count(loader: Any) -> int:
        return sum(len(batch) for batch in loader)

    # fork, as on any Linux: litdata.optimize makes spawn the default, and workers would import torch anew
    loaders = {
        f"npy{n}": DataLoader(
            NpyClips(files), BATCH, shuffle=True, num_workers=n, collate_fn=joined,
            multiprocessing_context="fork" if n else None,
        )
        for n in (0, 2)
    }  # fmt: skip
    found = {"ours": ours} | {name: (lambda loader=loader: count(loader)) for name, loader in loaders.items()}
    if find_spec("litdata"):
        import litdata

        litdata.optimize(
            clips.__getitem__, list(range(len(clips))), str(folder / "lit"), chunk_bytes="64MB", num_workers=1
        )
        data = litdata.StreamingDataset(str(folder / "lit"), shuffle=True)
        lit = litdata.StreamingDataLoader(data, batch_size=BATCH, num_workers=0, collate_fn=joined)
        found["litdata"] = lambda: count(lit)
    if find_spec("webdataset"):
        import webdataset

        pattern = str(folder / "web-%04d.tar")
        with webdataset.ShardWriter(pattern, maxcount=1000) as sink:
            for i, rows in enumerate(clips):
                sink.write({"__key__": f"{i:06d}", "rows.npy": rows})
        tars = sorted(map(str, folder.glob("web-*.tar")))
        web = webdataset.WebDataset(tars, shardshuffle=len(tars)).shuffle(1000).decode().to_tuple("rows.npy")
        batched = web.batched(BATCH, collation_fn=lambda items: joined([rows for (rows,) in items]))
        found["webdataset"] = lambda: count(batched)
    return found


if __name__ == "__main__":
    main()
