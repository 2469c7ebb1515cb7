"""A shard of 128 MiB with its receipt, both flushed, against tofile and fsync of the same rows.

    python -m benchmarks.write_shard

Both begin with the rows in memory. Ours got there clip by clip, checked and summed, while a build computes; what that
takes for a shard is reported as `fill_seconds`.
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.flat import make_world
from benchmarks.harness import arguments, race, ratio, report
from pipeline.store.writer import ShardBuilder


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--clips", type=int, default=4_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:  # /tmp may be memory, where a flush costs nothing
        world = make_world(Path(folder) / "cache", options.clips, shard_bytes=128 * 2**20)
        clips = [world.rows[a:b] for a, b in zip(world.offsets[:-1], world.offsets[1:], strict=True)]
        n = 0
        while n < len(clips) and world.offsets[n + 1] <= world.stage.shard_rows:
            n += 1
        whole = np.zeros((world.stage.shard_rows, world.rows.shape[1]), world.rows.dtype)
        whole[: world.offsets[n]] = world.rows[: world.offsets[n]]

        def filled(number: int) -> ShardBuilder:
            builder = ShardBuilder(world.stage, number)
            for key, rows in zip(world.keys[:n], clips[:n], strict=True):
                builder.add(key, key, {"features": rows}, {})
            return builder

        began = time.perf_counter()
        first = world.stage.shards
        ready = [filled(first + number) for number in reversed(range(options.rounds + 1))]
        fill = (time.perf_counter() - began) / len(ready)

        def ours() -> int:
            receipt = ready.pop().commit()
            # keep the disk small
            world.stage.folder.shard_file(world.stage.arrays["features"], receipt.shard).unlink()
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
                "of_tofile": ratio(times["tofile"], times["ours"]), "wanted": 0.7,
                "fill_seconds": round(fill, 4)}  # fmt: skip
    report("write_shard", measured, options.out)


if __name__ == "__main__":
    main()
