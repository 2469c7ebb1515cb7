"""A writer to be killed: `python -m tests.store.committer CACHE SHARDS` commits until there are SHARDS.

Every shard has one clip and rows that its number decides. Prints the number of each.
"""

import sys
from pathlib import Path

import numpy as np

from pipeline.errors import ClipError
from pipeline.store.layout import ArraySpec
from pipeline.store.records import QuarantineEntry
from pipeline.store.writer import ShardBuilder
from tests.store.caches import make_stage, random_rows

ARRAYS = (
    ArraySpec("features", "float16", (128,), 64, "raw"),
    ArraySpec("logits", "float32", (), 1024, "raw"),
    ArraySpec("labels", "uint8", (8, 8), 1, "zstd"),
)
SHARD_ROWS = 1024


def expected(number: int) -> dict[str, np.ndarray]:
    n = SHARD_ROWS // 2 + number
    return {spec.name: random_rows(spec, n, number) for spec in ARRAYS}


def main() -> None:
    stage = make_stage(Path(sys.argv[1]), ARRAYS, SHARD_ROWS)
    while (number := stage.next_shard) < int(sys.argv[2]):
        error = ClipError("E_DECODE", "no " * 200)
        stage.add_quarantine(QuarantineEntry.of(f"bad {number}", "c", stage.name, error))
        builder = ShardBuilder(stage, number)
        builder.add(f"clip {number}", f"clip {number}", expected(number), {"number": number})
        builder.commit()
        print(number, flush=True)


if __name__ == "__main__":
    main()
