"""Part labels without a segmentation network: landmarks of the person, from files or from MediaPipe.

For machines without a GPU, and as a check on the other segmenters. The labels are Sapiens ids; there are no
garments among them, so clothing rules change nothing.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from pipeline.encoders.limbs import Landmarks, limb_labels
from pipeline.errors import ClipError, UserError

if TYPE_CHECKING:
    from pipeline.plan import ClipTask
    from pipeline.spec import SegmentSpec

# All frames of a clip and the wanted ones -> their landmarks.
Source = Callable[["ClipTask", Tensor, np.ndarray], Landmarks]

SHAPES = {"pose": (33, 4), "left_hand": (21, 4), "right_hand": (21, 4)}


class LandmarkSegmenter(nn.Module):
    """A segmenter that looks at landmarks; a module only so that it loads and moves like the others.

    Args:
        source: gives the landmarks of a clip, or raises ClipError.
    """

    parts = "sapiens28"
    image_size = None

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source

    @classmethod
    def from_files(cls, path: Path | None) -> "LandmarkSegmenter":
        """From a folder of landmark files, or with None from a MediaPipe process.

        Raises UserError: the folder is empty, or MediaPipe cannot be run.
        """
        if path is None:
            from pipeline.encoders.mediapipe_process import MediapipeProcess

            return cls(MediapipeProcess())
        if not any(path.rglob("*.npz")):
            raise UserError(
                f"{path}: no landmark files; it should hold VIDEO.npz for every video, see docs/segmentation.md"
            )
        return cls(lambda task, frames, index: read_landmarks(path, task, frames, index))

    def inputs(
        self, frames: Tensor, spec: "SegmentSpec", task: "ClipTask", index: np.ndarray
    ) -> Callable[[int, int], Tensor]:
        """Rows are finished labels, uint8 [n, *label_size]; see contract.Segmenter."""
        found = self.source(task, frames, index)
        height, width = spec.label_size

        def rows(low: int, high: int) -> Tensor:
            maps = [
                cv2.resize(limb_labels(found, row), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
                for row in range(low, high)
            ]
            return torch.from_numpy(np.stack(maps))

        return rows

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Labels uint8 [B, h, w], as they come."""
        return {"labels": x}


def read_landmarks(folder: Path, task: "ClipTask", frames: Tensor, index: np.ndarray) -> Landmarks:
    """The landmarks of a clip's frames `index` from its file: folder/VIDEO.npz, or under the video's own folders.

    The file has a row for every frame of the video. Raises ClipError E_LANDMARKS: it is missing, not readable,
    or of another video.
    """
    video = PurePosixPath(str(task.clip.video_path))
    candidates = [folder / video.with_suffix(".npz"), folder / f"{video.stem}.npz"]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise ClipError("E_LANDMARKS", f"{candidates[1]} is not there; make it, or leave the clip out")
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in (*SHAPES, "person", "size")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ClipError(
            "E_LANDMARKS", f"{path} is not readable as landmarks ({error}); make it again"
        ) from None
    rows, first = len(held["pose"]), task.clip.start_frame or 0
    needed, height, width = first + len(frames), *frames.shape[1:3]
    cut = task.clip.end_frame is not None
    faults = [
        f"{name} is {held[name].dtype} {held[name].shape}, not float [{rows}, {', '.join(map(str, shape))}]"
        for name, shape in SHAPES.items()
        if held[name].shape != (rows, *shape) or held[name].dtype.kind != "f"
    ]
    person = held["person"]
    if person.ndim != 3 or len(person) != rows or person.dtype != np.uint8 or not person.size:
        faults.append(f"person is {person.dtype} {person.shape}, not uint8 [{rows}, h, w]")
    if held["size"].tolist() != [height, width]:
        faults.append(f"it is for pictures of {held['size'].tolist()}, the clip has [{height}, {width}]")
    if rows < needed or (rows > needed and not cut):
        faults.append(f"it has {rows} rows, the clip needs {needed}")
    if faults:
        raise ClipError(
            "E_LANDMARKS", f"{path} does not fit: {'; '.join(faults)}; make it again from this video"
        )
    chosen = first + index
    return Landmarks(*(held[name][chosen] for name in (*SHAPES, "person")))
