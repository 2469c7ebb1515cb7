"""The contract of segmenters, kept by every one of them, and the stage over it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.encoders.contract import Segmenter
from pipeline.encoders.landmarks import LandmarkSegmenter
from pipeline.encoders.sapiens2 import Sapiens2Seg, squash_antialiased
from pipeline.errors import UserError
from pipeline.regions import load_parts
from pipeline.spec import SegmentSpec
from pipeline.stages.segment import segment
from pipeline.stages.work import Work

from .segmenters import (
    FRAMES,
    HEIGHT,
    LABEL_SIZE,
    NAMES,
    SAPIENS2,
    WIDTH,
    make_segmenter,
    make_spec,
    make_task,
    make_work,
)

CPU = torch.device("cpu")


@pytest.fixture(params=NAMES)
def segmenter(request: pytest.FixtureRequest, tmp_path: Path) -> Segmenter:
    return make_segmenter(request.param, tmp_path)


def run(works: list[Work], spec: SegmentSpec, model: Segmenter, batch: int = 4) -> list[Work]:
    return list(segment(iter(works), spec, model, batch, CPU, lambda work: True))


def rows_of(model: Segmenter, index: np.ndarray) -> torch.Tensor:
    work = make_work()
    fetch = model.inputs(work.frames_on(CPU), make_spec(model), work.task, index)
    return torch.cat([fetch(low, low + 1) for low in range(len(index))])


def test_outputs_are_those_of_the_contract(segmenter: Segmenter) -> None:
    parts = load_parts(segmenter.parts)
    rows = rows_of(segmenter, np.array([0, 3, 6]))
    assert len(rows) == 3
    with torch.inference_mode():
        out = segmenter(rows)
    if segmenter.image_size is None:
        assert set(out) == {"labels"}
        assert (out["labels"].dtype, tuple(out["labels"].shape)) == (torch.uint8, (3, *LABEL_SIZE))
        assert len(out["labels"].unique()) > 5
    else:
        assert set(out) == {"logits"}
        assert out["logits"].shape[:2] == (3, len(parts.classes))
        assert rows.shape[1:] == (3, *segmenter.image_size)


def test_a_batch_is_its_rows(segmenter: Segmenter) -> None:
    rows = rows_of(segmenter, np.arange(FRAMES))
    with torch.inference_mode():
        (together,) = segmenter(rows).values()
        apart = torch.cat([next(iter(segmenter(rows[i : i + 1]).values())) for i in range(FRAMES)])
        again = torch.cat(
            [rows[:1], rows[-1:].expand(3, *rows.shape[1:])]
        )  # as the tail of a batch is padded
        (padded,) = segmenter(again).values()
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded[0], together[0], atol=1e-5, rtol=1e-5)
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_stage_labels_are_independent_of_the_batch(segmenter: Segmenter, batch: int) -> None:
    spec = make_spec(segmenter, stride=2)
    (whole,) = run([make_work()], spec, segmenter, 4)
    works = run([make_work(), make_work(key="again")], spec, segmenter, batch)
    for work in works:
        assert work.labels is not None
        assert (work.labels.dtype, work.labels.shape) == (np.uint8, (-(-FRAMES // 2), *LABEL_SIZE))
        assert (work.labels == whole.labels).mean() > 0.999
        assert work.labels.max() < len(load_parts(segmenter.parts).classes)
        arrays, facts = work.written["segment"]
        assert set(arrays) == {"labels", "under"}
        assert facts["stride"] == 2
        assert 0 <= facts["clothing_moves"] <= 1


def test_under_is_never_a_garment(segmenter: Segmenter) -> None:
    (work,) = run([make_work()], make_spec(segmenter), segmenter)
    clothing = load_parts(segmenter.parts).clothing
    garment = np.isin(work.labels, clothing)
    assert work.under is not None
    assert not work.under[~garment].any()
    assert not np.isin(work.under[garment], (0, *clothing)).any()


def test_bfloat16_gives_labels_too(segmenter: Segmenter) -> None:
    (exact,) = run([make_work()], make_spec(segmenter), segmenter)
    (rough,) = run([make_work()], make_spec(segmenter, precision="bfloat16"), segmenter)
    assert rough.labels is not None
    assert rough.labels.dtype == np.uint8
    assert (rough.labels == exact.labels).mean() > 0.7  # random weights: many classes are nearly tied


def test_clips_that_are_not_wanted_pass_untouched(segmenter: Segmenter) -> None:
    work = make_work()
    (out,) = segment(iter([work]), make_spec(segmenter), segmenter, 4, CPU, lambda work: False)
    assert out is work
    assert not out.written


def test_another_part_list_is_refused(segmenter: Segmenter) -> None:
    other = "sapiens28" if segmenter.parts != "sapiens28" else "sapiens2_29"
    with pytest.raises(UserError, match=f"set regions.parts={segmenter.parts}"):
        run([make_work()], make_spec(segmenter, parts=other), segmenter)


def test_landmarks_cannot_be_cropped(tmp_path: Path) -> None:
    model = make_segmenter("landmarks", tmp_path)
    with pytest.raises(UserError, match=r"segment\.crop=none"):
        run([make_work()], make_spec(model, crop="person"), model)


class BrightIsTorso(torch.nn.Module):
    """Calls pixels brighter than noise torso, as an honest segmenter of what it is shown."""

    parts = "sapiens28"
    image_size = (60, 48)

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[int, ...]] = []

    def inputs(self, frames: torch.Tensor, spec: Any, task: Any, index: np.ndarray) -> Any:
        self.shown.append((len(index), *frames.shape[1:3]))

        def rows(low: int, high: int) -> torch.Tensor:
            chosen = frames[torch.from_numpy(index[low:high])].movedim(-1, 1).float()
            return torch.nn.functional.interpolate(chosen, self.image_size)

        return rows

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = torch.zeros(len(x), 28, *self.image_size)
        logits[:, 21] = torch.where(x.amin(1) > 130, 1.0, -1.0)
        return {"logits": logits}


def bright_clip(patch: tuple[int, int, int, int] | None) -> Work:
    """300 x 400 pixels; the patch (x1, y1, x2, y2) moves 2 pixels to the right per frame."""
    frames = np.zeros((FRAMES, 300, 400, 3), np.uint8)
    for t in range(FRAMES):
        if patch:
            x1, y1, x2, y2 = patch
            frames[t, y1:y2, x1 + 2 * t : x2 + 2 * t] = 200
    return Work(make_task(), frames=frames, facts={})


def test_crop_follows_the_person_and_labels_come_back_in_place() -> None:
    model, patch = BrightIsTorso(), (100, 80, 130, 160)
    whole = run([bright_clip(patch)], make_spec(model), model)[0]
    crop = run([bright_clip(patch)], make_spec(model, crop="person"), model)[0]
    assert whole.labels is not None
    assert crop.labels is not None
    x1, y1, x2, y2 = crop.written["segment"][1]["person_crop"]
    assert (x1 <= 100, y1 <= 80, x2 >= 130 + 2 * (FRAMES - 1), y2 >= 160) == (True,) * 4
    assert abs((x2 - x1) / (y2 - y1) - 48 / 60) < 0.02  # the aspect of the segmenter's input
    assert x2 - x1 < 160  # and it is a crop
    assert [shape[0] for shape in model.shown] == [FRAMES, 3, FRAMES]
    rows, columns = (np.arange(60) + 0.5) * 300 / 60, (np.arange(48) + 0.5) * 400 / 48
    left = patch[0] + 2 * np.arange(FRAMES)[:, None, None]
    truth = (columns >= left) & (columns < left + 30) & ((rows >= 80) & (rows < 160))[:, None]
    seen = [((work.labels > 0) & truth).sum() / ((work.labels > 0) | truth).sum() for work in (whole, crop)]
    assert seen[1] > 0.9
    assert seen[1] > seen[0]  # a small person is seen better in the crop


def test_crop_of_an_empty_clip_is_the_whole_frame() -> None:
    model = BrightIsTorso()
    works = [bright_clip(None), bright_clip((350, 0, 399, 300))]
    works[1].task = make_task("other")
    empty, edge = run(works, make_spec(model, crop="person"), model)
    assert empty.written["segment"][1]["person_crop"] == "no person found: whole frame"
    x1, y1, x2, y2 = edge.written["segment"][1]["person_crop"]
    assert (y1, x2, y2) == (0, 400, 300)  # taller than its aspect allows: cut to the frame
    assert x1 < 350


def test_wrong_number_of_classes_is_refused() -> None:
    model = BrightIsTorso()
    model.parts = "sapiens2_29"
    with pytest.raises(UserError, match="28 classes, part list sapiens2_29 has 29"):
        run([bright_clip(None)], make_spec(model), model)


# Sapiens2


def test_part_lists_hold_the_same_parts_in_the_same_regions() -> None:
    old, new = load_parts("sapiens28"), load_parts("sapiens2_29")
    assert [name for name in new.classes if name != "Eyeglass"] == list(old.classes)
    for region, ids in new.regions.items():
        names = {new.classes[i] for i in ids} - {"Eyeglass"}
        assert names == {old.classes[i] for i in old.regions[region]}
    assert new.classes[2] == "Eyeglass"
    assert 2 in new.regions["head"]
    assert [new.classes[i] for i in new.clothing] == [old.classes[i] for i in old.clothing]


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    model = make_segmenter("sapiens2-seg", tmp_path)
    model.net.save_pretrained(tmp_path / "hub")  # type: ignore[attr-defined]
    return tmp_path / "hub"


def test_sapiens2_is_transformers_own_model(hub_folder: Path) -> None:
    from safetensors import safe_open
    from transformers import Sapiens2ForSemanticSegmentation

    with safe_open(hub_folder / "model.safetensors", "pt") as file:  # spelt as the released files are
        assert {"backbone.cls_token", "backbone.blocks.0.ffn.w12.weight"} <= set(file.keys())
    ours = Sapiens2Seg.from_files(hub_folder / "model.safetensors").eval()
    theirs = Sapiens2ForSemanticSegmentation.from_pretrained(hub_folder).eval()
    x = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(ours(x)["logits"], theirs(pixel_values=x).logits)
    assert ours.image_size == (64, 48)
    assert not any(p.is_meta for p in ours.parameters())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 1}, "unexpected"),
        ({"intermediate_size": 32}, "mismatched"),
        ({"id2label": {str(i): f"class{i}" for i in range(29)}}, "class 0 is 'class0'"),
        ({"id2label": {str(i): f"LABEL_{i}" for i in range(28)}}, "28 classes"),
    ],
)
def test_sapiens2_folder_that_does_not_fit(hub_folder: Path, change: dict[str, Any], word: str) -> None:
    config = json.loads((hub_folder / "config.json").read_text())
    if "num_hidden_layers" in change:
        for derived in ("num_key_value_heads_per_layer", "out_features", "out_indices", "stage_names"):
            config.pop(derived, None)
    (hub_folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=word):
        Sapiens2Seg.from_files(hub_folder)


def test_sapiens2_names_the_files_it_lacks(hub_folder: Path) -> None:
    (hub_folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"model\.safetensors of one of facebook/sapiens2-seg"):
        Sapiens2Seg.from_files(hub_folder)
    (hub_folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json"):
        Sapiens2Seg.from_files(hub_folder)


def test_named_labels_are_accepted() -> None:
    names = dict(enumerate(load_parts("sapiens2_29").classes))
    assert Sapiens2Seg(config={**SAPIENS2, "id2label": names}).image_size == (64, 48)


def test_antialiased_squash_averages_what_it_shrinks() -> None:
    stripes = torch.zeros(1, HEIGHT, WIDTH, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = (
        200  # columns of 200 and 0: any resize without antialiasing to a quarter gives either
    )
    small = squash_antialiased(stripes, (HEIGHT // 4, WIDTH // 4))
    assert small.shape == (1, HEIGHT // 4, WIDTH // 4, 3)
    assert (small.float()[:, :, 1:-1] - 100).abs().max() < 15
    same = torch.randint(0, 256, (2, 20, 10, 3), dtype=torch.uint8)
    assert torch.equal(squash_antialiased(same, (20, 10)), same)


def test_landmark_segmenter_moves_like_a_module(tmp_path: Path) -> None:
    model = make_segmenter("landmarks", tmp_path)
    assert isinstance(model, LandmarkSegmenter)
    assert model.to(CPU).requires_grad_(False) is model
