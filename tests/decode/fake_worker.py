"""A worker whose decoders misbehave on cue: the name of the file says how. Started like the real one."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Generator
from pathlib import Path

import numpy as np

sys.path.insert(0, sys.argv[1])

from pipeline.decode import backends, worker
from pipeline.decode.backends import Backend, Only
from pipeline.decode.probe import Probe


def misbehaving(name: str, honest: Backend) -> Backend:
    def frames(
        path: Path, probe: Probe, start: int, end: int | None, only: Only
    ) -> Generator[np.ndarray | None, None, backends.Outcome]:
        for cue in path.stem.split("-"):
            if cue in (f"hang_{name}", "hang_all"):
                ctypes.PyDLL(None).sleep(
                    1000
                )  # keeps the GIL: no thread of this process could notice anything
            elif cue == f"midway_{name}":
                yield next(honest(path, probe, start, end, only))
                time.sleep(1000)
            elif cue in (f"crash_{name}", "crash_all"):
                os.kill(os.getpid(), signal.SIGSEGV)
            elif cue == f"noise_{name}":
                print("not a frame", flush=True)
                os.write(1, b"garbage")
                os.write(2, b"[h264 @ 0x1] error while decoding MB 3 4\n")
            elif cue == "slow":
                time.sleep(0.3)
            elif cue == "modules":
                loaded = [name for name in ("torch", "transformers", "cv2", "zarr") if name in sys.modules]
                raise backends.RefusedError(f"loaded {loaded}")
        return (yield from honest(path, probe, start, end, only))

    return frames


for name, honest in list(backends.BACKENDS.items()):
    backends.BACKENDS[name] = misbehaving(name, honest)
worker.main()
