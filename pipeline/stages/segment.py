"""Part labels of every stride-th frame, from any segmenter (pipeline/encoders/contract.py)."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.decode.spans import SpanFrames
from pipeline.encoders.contract import Segmenter
from pipeline.errors import ClipError, UserError
from pipeline.person import PixelBox, look_at, pasted, person_box
from pipeline.regions import Parts, load_parts, region_map
from pipeline.spec import SegmentSpec
from pipeline.stages.packing import Outputs, Rows, packed
from pipeline.stages.work import Work, compressed
from pipeline.store.layout import ArraySpec
from pipeline.store.shard import PackedRows


def arrays(spec: SegmentSpec) -> list[ArraySpec]:
    """labels: the class of every pixel; under: the best limb or torso class where a garment is, else 0."""
    return [compressed("labels", "uint8", *spec.label_size), compressed("under", "uint8", *spec.label_size)]


def segment(
    works: Iterable[Work],
    spec: SegmentSpec,
    model: Segmenter,
    batch: int,
    device: torch.device,
    wanted: Callable[[Work], bool],
) -> Iterator[Work]:
    """Add labels and under, uint8 [S, h, w], S = ceil(F / stride), to every wanted work that has frames.

    Raises UserError where the segmenter and the spec do not fit together.
    """
    parts = _checked_parts(spec, model)
    boxes: dict[str, PixelBox | None] = {}  # clip key -> crop, of clips between the two passes
    made: dict[str, _Made] = {}  # clip key -> labels so far

    def forward(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        return _labels(model(rows), spec, parts)

    def rows(work: Work, index: Callable[[int], np.ndarray], box: PixelBox | None) -> Rows:
        nothing = Rows(work, 0, lambda low, high: torch.empty(0))
        if work.frames is None or work.error or not wanted(work):
            return nothing
        chosen = index(len(work.frames))
        try:
            return Rows(
                work,
                len(chosen),
                model.inputs(work.frames_seen(device, box), spec, work.task, chosen),  # type: ignore[arg-type]
            )
        except ClipError as error:
            work.error = ("segment", error)
            return nothing

    def look() -> Iterator[Work]:
        whole = (rows(work, look_at, None) for work in works)
        for work, out in packed(whole, batch, forward, spec.precision, device):
            if out:
                assert work.frames is not None
                assert model.image_size is not None
                _, height, width, _ = work.frames.shape
                boxes[work.task.key] = person_box(out["labels"], (height, width), model.image_size)
            yield work

    def strided(work: Work) -> Rows:
        box = boxes.pop(work.task.key, None)
        found = rows(work, lambda count: np.arange(0, count, spec.stride), box)
        if found.n:
            made[work.task.key] = _Made(work, spec, parts, box)
            found.keep = made[work.task.key].add
        return found

    source = look() if spec.crop == "person" else works
    for work, _ in packed((strided(work) for work in source), batch, forward, spec.precision, device):
        if work.task.key in made:
            made.pop(work.task.key).finish()
        yield work


class _Made:
    """The labels of one clip, collected batch by batch; compressed where the clip has no room for its frames either."""

    def __init__(self, work: Work, spec: SegmentSpec, parts: Parts, box: PixelBox | None) -> None:
        self.work, self.spec, self.parts, self.box = work, spec, parts, box
        self.maps: dict[str, list[np.ndarray] | PackedRows] = {
            array.name: PackedRows(array) if isinstance(work.frames, SpanFrames) else []
            for array in arrays(spec)
        }
        self.garment = self.moved = 0  # pixels, and those of another region beneath

    def add(self, out: Outputs) -> None:
        """Take the next frames' labels and under, uint8 [n, h, w]."""
        if self.box is not None:
            assert self.work.frames is not None
            _, height, width, _ = self.work.frames.shape
            out = {name: pasted(crop, self.box, (height, width)) for name, crop in out.items()}
        for name, rows in self.maps.items():
            rows.append(out[name])
        garment = np.isin(out["labels"], self.parts.clothing)
        worn, beneath = (region_map(out[name][garment], self.parts.regions) for name in ("labels", "under"))
        self.garment += int(garment.sum())
        self.moved += int((worn != beneath).sum())

    def finish(self) -> None:
        """Put all of it into the work."""
        work, spec = self.work, self.spec
        whole = {
            name: np.concatenate(rows) if isinstance(rows, list) else rows for name, rows in self.maps.items()
        }
        work.labels, work.under = whole["labels"], whole["under"]
        # Share of the garment pixels that `clothing: reassign` would give to another region.
        moves = round(self.moved / self.garment, 4) if self.garment else 0.0
        facts = {**work.facts, "stride": spec.stride, "clothing_moves": moves}
        if spec.crop == "person":
            facts["person_crop"] = list(self.box) if self.box else "no person found: whole frame"
        work.written["segment"] = (whole, facts)


def _checked_parts(spec: SegmentSpec, model: Segmenter) -> Parts:
    if model.parts != spec.parts:
        raise UserError(
            f"segmenter {spec.model} labels with the part list {model.parts}, the preset asks for {spec.parts}; "
            f"set regions.parts={model.parts}"
        )
    if spec.crop == "person" and model.image_size is None:
        raise UserError(f"segmenter {spec.model} looks at no pixels to crop; set segment.crop=none")
    return load_parts(spec.parts)


def _labels(out: dict[str, torch.Tensor], spec: SegmentSpec, parts: Parts) -> dict[str, torch.Tensor]:
    """What the segmenter gave, as labels and under at label_size: uint8 [B, h, w]."""
    if "labels" in out:
        return {"labels": out["labels"], "under": torch.zeros_like(out["labels"])}
    if out["logits"].shape[1] != len(parts.classes):
        raise UserError(
            f"segmenter {spec.model} has {out['logits'].shape[1]} classes, part list {spec.parts} has "
            f"{len(parts.classes)}; name its own list in manifests/parts.yaml"
        )
    # Channels last: upsampling 28 channels this way is 4 times faster on a CPU.
    logits = out["logits"].float().contiguous(memory_format=torch.channels_last)
    logits = F.interpolate(logits, spec.label_size, mode="bilinear", align_corners=False)
    labels = logits.argmax(1)
    clothing = torch.tensor(parts.clothing, device=logits.device)
    return {"labels": labels.to(torch.uint8), "under": _under(logits, labels, clothing)}


def _under(logits: torch.Tensor, labels: torch.Tensor, clothing: torch.Tensor) -> torch.Tensor:
    """Best class that is neither garment nor background, where the label is a garment: uint8 [B, h, w]."""
    under = torch.zeros_like(labels, dtype=torch.uint8)
    garment = torch.isin(labels, clothing)
    pixels = logits.permute(0, 2, 3, 1)[garment]  # [n, classes]; a view, as the logits are channels last
    pixels[:, clothing] = -torch.inf
    pixels[:, 0] = -torch.inf
    under[garment] = pixels.argmax(1).to(torch.uint8)
    return under
