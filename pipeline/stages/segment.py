"""Part labels of every stride-th frame, from any segmenter (pipeline/encoders/contract.py)."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.encoders.contract import Segmenter
from pipeline.errors import ClipError, UserError
from pipeline.person import PixelBox, look_at, pasted, person_box
from pipeline.regions import Parts, load_parts, region_map
from pipeline.spec import SegmentSpec
from pipeline.stages.packing import Rows, packed
from pipeline.stages.work import Work, compressed
from pipeline.store.layout import ArraySpec


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

    def forward(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        return _labels(model(rows), spec, parts)

    def rows(work: Work, index: Callable[[int], np.ndarray], box: PixelBox | None) -> Rows:
        nothing = Rows(work, 0, lambda low, high: torch.empty(0))
        if work.frames is None or work.error or not wanted(work):
            return nothing
        frames, chosen = work.frames_on(device), index(len(work.frames))
        if box is not None:
            frames = frames[:, box[1] : box[3], box[0] : box[2]]
        try:
            return Rows(work, len(chosen), model.inputs(frames, spec, work.task, chosen))
        except ClipError as error:
            work.error = ("segment", error)
            return nothing

    def look() -> Iterator[Work]:
        whole = (rows(work, look_at, None) for work in works)
        for work, out in packed(whole, batch, forward, spec.precision, device):
            if out:
                assert work.frames is not None
                assert model.image_size is not None
                size = work.frames.shape[1:3]
                boxes[work.task.key] = person_box(out["labels"], size, model.image_size)
            yield work

    source = look() if spec.crop == "person" else works
    strided = (
        rows(work, lambda count: np.arange(0, count, spec.stride), boxes.get(work.task.key))
        for work in source
    )
    for work, out in packed(strided, batch, forward, spec.precision, device):
        if out:
            assert work.frames is not None
            box = boxes.pop(work.task.key, None)
            maps = [out["labels"], out["under"]]
            if box is not None:
                maps = [pasted(crop, box, work.frames.shape[1:3]) for crop in maps]
            work.labels, work.under = maps
            facts = {**work.facts, "stride": spec.stride, "clothing_moves": _clothing_moves(work, parts)}
            if spec.crop == "person":
                facts["crop"] = list(box) if box else "no person found: whole frame"
            work.written["segment"] = ({"labels": work.labels, "under": work.under}, facts)
        yield work


def _clothing_moves(work: Work, parts: Parts) -> float:
    """Share of the garment pixels that `clothing: reassign` would give to another region."""
    assert work.labels is not None
    assert work.under is not None
    garment = np.isin(work.labels, parts.clothing)
    worn, beneath = (region_map(maps[garment], parts.regions) for maps in (work.labels, work.under))
    return round(float((worn != beneath).mean()), 4) if garment.any() else 0.0


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
