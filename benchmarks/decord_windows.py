"""Windows the published way: decord's get_batch for every one, in a process of its own.

decord must not share a process with torch, so frames are handed over in shared memory: one copy that the published
scripts do not make, about 1 % of what decoding the window takes.
"""

import json
import mmap
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOM = 256 << 20  # bytes: 16 frames of 1080 x 1296 take 67 MB


class Windows:
    """Client of the process. Opens a file once and serves any frames of it; a context manager."""

    def __enter__(self) -> "Windows":
        self.file = tempfile.NamedTemporaryFile(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)  # noqa: S108
        self.file.truncate(ROOM)
        self.memory = np.memmap(self.file.name, np.uint8, "r")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.decord_windows", self.file.name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.file.close()

    def count(self, path: Path) -> int:
        """Open a file; its number of frames."""
        return int(self._ask(str(path)))

    def get(self, index: np.ndarray) -> np.ndarray:
        """These frames of the file opened last: uint8 [n, H, W, 3], valid until the next call."""
        shape = json.loads(self._ask(json.dumps(index.tolist())))
        return self.memory[: int(np.prod(shape))].reshape(shape)

    def _ask(self, line: str) -> str:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"decord's process ended at {line[:100]}")
        return answer


def serve(memory: Path) -> None:
    """A path opens that file and answers its frames; a JSON list of frames puts them into the memory."""
    import decord

    with memory.open("r+b") as file, mmap.mmap(file.fileno(), ROOM) as room:
        target = np.frombuffer(room, np.uint8)
        reader = None
        for line in sys.stdin:
            if reader is None or not line.startswith("["):
                reader = decord.VideoReader(line.strip(), num_threads=1)
                print(len(reader), flush=True)
            else:
                frames = reader.get_batch(json.loads(line)).asnumpy()
                target[: frames.size] = frames.reshape(-1)
                print(json.dumps(frames.shape), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
