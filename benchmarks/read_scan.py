"""All rows of a cache in order, against memcpy of as many bytes in memory.

python -m benchmarks.read_scan
"""

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.flat import make_world
from benchmarks.harness import arguments, race, ratio, report


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--clips", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder) / "cache", options.clips)
        shards = [receipt.shard for receipt in world.stage.receipts()]
        buffer = np.empty((world.stage.shard_rows, world.rows.shape[1]), world.rows.dtype)

        def scan() -> int:
            count = 0
            for shard in shards:
                rows = world.reader.rows("features", shard)
                buffer[: len(rows)] = rows
                count += len(rows)
            return count

        def memcpy() -> int:
            count = 0
            for start in range(0, len(world.rows), len(buffer)):
                rows = world.rows[start : start + len(buffer)]
                buffer[: len(rows)] = rows
                count += len(rows)
            return count

        times = race({"ours": scan, "memcpy": memcpy}, len(world.rows), options.rounds)
    measured = {"rows": len(world.rows), "bytes": world.rows.nbytes, "ours": times["ours"].record(world.rows.nbytes),
                "of_memcpy": ratio(times["memcpy"], times["ours"]), "wanted": 0.8}  # fmt: skip
    report("read_scan", measured, options.out)


if __name__ == "__main__":
    main()
