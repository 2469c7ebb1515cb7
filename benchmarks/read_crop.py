"""512 rows of a long video, [T, 1408]: a slice of the map against ActionFormer's way of loading a training crop.

    python -m benchmarks.read_crop

That way is np.load of the whole float32 file, astype(float32), then the crop. Both end with a float32 crop.
"""

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.flat import make_world
from benchmarks.harness import arguments, race, ratio, report

CROP, DIM = 512, 1408


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--videos", type=int, default=100)
    options = parser.parse_args()
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

        def ours() -> int:
            return sum(
                len(world.reader.read(key, "features")[start : start + CROP].astype(np.float32))
                for key, start in zip(world.keys, crops, strict=True)
            )

        def theirs() -> int:
            return sum(
                len(np.load(path).astype(np.float32)[start : start + CROP].copy())
                for path, start in zip(files, crops, strict=True)
            )

        times = race({"ours": ours, "actionformer": theirs}, options.videos * CROP, options.rounds)
    measured = {"videos": options.videos, "crop": [CROP, DIM], "ours": times["ours"].record(options.videos),
                "times_ours": ratio(times["actionformer"], times["ours"]), "wanted": 12}  # fmt: skip
    report("read_crop", measured, options.out)


if __name__ == "__main__":
    main()
