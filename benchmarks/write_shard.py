"""A shard with its receipt, both flushed, against tofile and fsync of the same rows.

python -m benchmarks.write_shard
"""

import os
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.flat import make_world
from benchmarks.harness import arguments, race, ratio, report
from pipeline.store.writer import ShardBuilder


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--clips", type=int, default=2_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:  # /tmp may be memory, where a flush costs nothing
        world = make_world(Path(folder) / "cache", options.clips)
        clips = [world.rows[a:b] for a, b in zip(world.offsets[:-1], world.offsets[1:], strict=True)]
        n = 0
        while n < len(clips) and world.offsets[n + 1] <= world.stage.shard_rows:
            n += 1
        whole = np.zeros((world.stage.shard_rows, world.rows.shape[1]), world.rows.dtype)
        whole[: world.offsets[n]] = world.rows[: world.offsets[n]]

        def ours() -> int:
            builder = ShardBuilder(world.stage, world.stage.next_shard)
            for key, rows in zip(world.keys[:n], clips[:n], strict=True):
                builder.add(key, key, {"features": rows}, {})
            receipt = builder.commit()
            world.stage.folder.shard_file(
                world.stage.arrays["features"], receipt.shard
            ).unlink()  # keep the disk small
            return receipt.rows

        def tofile() -> int:
            path = Path(folder) / "flat.bin"
            with path.open("wb") as file:
                whole.tofile(file)
                file.flush()
                os.fsync(file.fileno())
            path.unlink()
            return int(world.offsets[n])

        times = race({"ours": ours, "tofile": tofile}, int(world.offsets[n]), options.rounds)
    measured = {"clips": n, "bytes": whole.nbytes, "ours": times["ours"].record(whole.nbytes),
                "of_tofile": ratio(times["tofile"], times["ours"]), "wanted": 0.7}  # fmt: skip
    report("write_shard", measured, options.out)


if __name__ == "__main__":
    main()
