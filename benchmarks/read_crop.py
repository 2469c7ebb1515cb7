"""512 rows of a long video, [T, 1408]: a slice of the map against ActionFormer's way of loading a training crop.

    python -m benchmarks.read_crop

That way is np.load of the whole float32 file, astype(float32), then the crop. Both end with float32 rows in the tensor
of a batch; torch runs on one thread, and only reads what lies in the map.
"""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from benchmarks.flat import make_world
from benchmarks.harness import arguments, race, ratio, report

CROP, DIM = 512, 1408


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--videos", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder) / "cache", options.videos, CROP, 2500, DIM)
        starts = world.offsets.tolist()
        files = [Path(folder) / f"{i}.npy" for i in range(options.videos)]
        for i, path in enumerate(files):
            np.save(path, world.rows[starts[i] : starts[i + 1]].astype(np.float32))
        dice = np.random.default_rng(1)
        crops = [
            int(dice.integers(0, starts[i + 1] - starts[i] - CROP, endpoint=True))
            for i in range(options.videos)
        ]

        batch = torch.empty(CROP, DIM)  # of which a training batch has many

        def ours() -> int:
            count = 0
            for key, start in zip(world.keys, crops, strict=True):
                rows = world.reader.read(key, "features", slice(start, start + CROP))
                batch.copy_(torch.from_numpy(rows))
                count += len(rows)
            return count

        def theirs() -> int:
            count = 0
            for path, start in zip(files, crops, strict=True):
                rows = np.load(path).astype(np.float32)[start : start + CROP]
                batch.copy_(torch.from_numpy(rows))
                count += len(rows)
            return count

        times = race({"ours": ours, "actionformer": theirs}, options.videos * CROP, options.rounds)
    measured = {"videos": options.videos, "crop": [CROP, DIM], "ours": times["ours"].record(options.videos),
                "times_ours": ratio(times["actionformer"], times["ours"]), "wanted": 12}  # fmt: skip
    report("read_crop", measured, options.out)


if __name__ == "__main__":
    main()
