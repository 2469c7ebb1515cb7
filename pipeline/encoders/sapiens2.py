"""Sapiens2 body-part segmentation, run by transformers: 29 part classes, logits at the size of the input.

Khirodkar et al., "Sapiens2", ICLR 2026 (arXiv 2604.21681); folders as facebook/sapiens2-seg-* on the hub have
them. Another architecture than Sapiens (v1), and another part list: docs/SEG.md of facebookresearch/sapiens2.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.encoders.preprocess import to_float
from pipeline.errors import UserError
from pipeline.regions import load_parts

if TYPE_CHECKING:
    from pipeline.plan import ClipTask
    from pipeline.spec import SegmentSpec


FILES = ("config.json", "model.safetensors")


class Sapiens2Seg(nn.Module):
    """transformers' Sapiens2ForSemanticSegmentation as a segmenter.

    Args:
        config: fields of transformers' Sapiens2Config, as in config.json of a hub folder. Its labels must be
            those of the part list, or none (LABEL_0, LABEL_1, ...), as in the published folders.
    """

    parts = "sapiens2_29"

    def __init__(self, *, config: Mapping[str, Any]) -> None:
        from transformers import Sapiens2Config, Sapiens2ForSemanticSegmentation

        super().__init__()
        settings = Sapiens2Config(**config)
        _check_labels(dict(settings.id2label or {}))
        size = settings.image_size
        height, width = (size, size) if isinstance(size, int) else size
        self.image_size = (height, width)
        self.net = Sapiens2ForSemanticSegmentation(settings)

    @classmethod
    def from_files(cls, path: Path) -> "Sapiens2Seg":
        """From a folder with config.json and model.safetensors, or one of these files; float32, strict.

        Both key spellings load, the released one and that of transformers. Raises UserError naming the folder.
        """
        from safetensors import SafetensorError
        from transformers import Sapiens2Config, Sapiens2ForSemanticSegmentation
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        folder = path if path.is_dir() else path.parent
        try:
            for name in FILES:  # transformers takes its defaults where config.json is missing
                (folder / name).stat()
            settings = Sapiens2Config.from_pretrained(folder, local_files_only=True)
            with torch.device("meta"):
                model = cls(config=settings.to_dict())
            loaded: Any = Sapiens2ForSemanticSegmentation.from_pretrained(
                folder,
                config=settings,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{folder}: no Sapiens2 segmentation model ({reason}); it needs {' and '.join(FILES)} of one of "
                "facebook/sapiens2-seg-{0.4b,0.8b,1b,5b}"
            ) from None
        model.net, info = loaded
        faults = {
            what: sorted(map(str, info[f"{what}_keys"])) for what in ("missing", "unexpected", "mismatched")
        }
        if any(faults.values()):
            told = "; ".join(
                f"{len(keys)} {what}: {', '.join(keys[:10])}" for what, keys in faults.items() if keys
            )
            raise UserError(f"{folder}: the weights do not fit config.json ({told}); fetch both files again")
        return model

    def inputs(
        self, frames: Tensor, spec: "SegmentSpec", task: "ClipTask", index: np.ndarray
    ) -> Callable[[int, int], Tensor]:
        """Squashed with antialiasing, as transformers' Sapiens2ImageProcessor does; see contract.Segmenter."""

        def rows(low: int, high: int) -> Tensor:
            chosen = frames[torch.from_numpy(index[low:high])]
            return to_float(squash_antialiased(chosen, self.image_size), spec.mean, spec.std)

        return rows

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Normalised RGB [B, 3, H, W] to logits [B, 29, H', W']; the part is their argmax."""
        if x.shape[1:] != (3, *self.image_size):
            raise ValueError(f"sapiens2-seg expects [B, 3, {self.image_size}], got {tuple(x.shape)}")
        return {"logits": self.net(pixel_values=x).logits}


def squash_antialiased(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Squash uint8 [F, H, W, 3] to [F, height, width, 3], bilinear with antialiasing, as torchvision does."""
    pixels = images.movedim(-1, -3)
    if not images.is_cuda:
        small = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
    else:  # torch resizes bytes on the CPU alone
        small = F.interpolate(
            pixels.float(), size, mode="bilinear", align_corners=False, antialias=True
        ).round_()
    return small.movedim(-3, -1)


def _check_labels(id2label: Mapping[Any, str]) -> None:
    """Refuse a model whose classes are not those of the part list, in its order."""
    wanted = load_parts(Sapiens2Seg.parts).classes
    for i, label in sorted(id2label.items()):
        known = wanted[i] if i < len(wanted) else None
        if label not in (f"LABEL_{i}", known) or known is None or len(id2label) != len(wanted):
            raise UserError(
                f"sapiens2-seg: {len(id2label)} classes, class {i} is {label!r}; part list {Sapiens2Seg.parts} has "
                f"{len(wanted)} classes, class {i} is {known!r}; use a model trained for body parts"
            )
