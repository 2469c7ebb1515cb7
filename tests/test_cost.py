"""Closed forms against torch's own counter, the published table, and what a build really writes."""

import inspect
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.cost import ENCODER_MACS, encoder_macs, row_bytes, row_macs
from pipeline.encoders import FAMILIES, SIZES, create_model
from pipeline.presets import load_recipe
from pipeline.store.reader import Cache
from tests.specs import pipeline_spec

# GMAC of one forward at the sizes of the original releases, as counted on the original code.
TABLE = {
    "videomaev2-small": 56.9,
    "videomaev2-base": 180.3,
    "videomaev2-large": 596.8,
    "videomaev2-huge": 1191.0,
    "videomaev2-giant": 2542.8,
    "sapiens-seg-0.3b": 2364.6,
    "sapiens-seg-0.6b": 3689.1,
    "sapiens-seg-1b": 5632.1,
    "sapiens-seg-2b": 9271.4,
    "manet": 32.77,
}

TINY: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("videomaev2", {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}, (3, 16, 32, 32)),
    (
        "videomaev2",
        {"img_size": 28, "patch_size": 14, "embed_dim": 32, "depth": 1, "num_heads": 4, "num_frames": 8,
         "mlp_ratio": 3.0},
        (3, 8, 28, 28),
    ),
    (
        "sapiens-seg",
        {"embed_dim": 16, "depth": 2, "num_heads": 2, "image_size": [32, 48], "head_channels": 8, "num_classes": 7},
        (3, 32, 48),
    ),
    ("manet", {"width": 16, "depths": [1, 1, 1, 1], "num_classes": 12, "crop": 96}, (8, 3, 96, 96)),
    ("manet", {"width": 8, "depths": [2, 1, 2, 1], "num_classes": 3, "embed_dim": 20, "crop": 75}, (8, 3, 75, 75)),
]  # fmt: skip


def counted(model: str, config: dict[str, Any], shape: tuple[int, ...]) -> int:
    """Multiply-adds of one forward by torch's counter, on the meta device."""
    with torch.device("meta"):
        built = create_model(model, **{k: v for k, v in config.items() if k != "crop"}).eval().to("meta")
        x = torch.empty(1, *shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        built(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", TABLE)
def test_published_sizes(name: str) -> None:
    macs = encoder_macs(name, {})
    assert macs is not None
    digits = 2 if name == "manet" else 1
    assert round(macs / 1e9, digits) == TABLE[name]


def test_the_table_is_complete() -> None:
    assert set(TABLE) == {*SIZES, "manet"}


@pytest.mark.parametrize(("model", "config", "shape"), TINY)
def test_closed_forms_are_what_torch_counts(
    model: str, config: dict[str, Any], shape: tuple[int, ...]
) -> None:
    assert encoder_macs(model, config) == counted(model, config, shape)


@pytest.mark.parametrize("name", ["videomaev2-base", "manet", "sapiens-seg-0.3b"])
def test_full_sizes_are_what_torch_counts(name: str) -> None:
    shape = {"videomaev2-base": (3, 16, 224, 224), "manet": (8, 3, 224, 224)}.get(name, (3, 1024, 768))
    assert encoder_macs(name, {}) == counted(name, {}, shape)


@pytest.mark.parametrize("family", ENCODER_MACS)
def test_defaults_are_those_of_the_encoders(family: str) -> None:
    module, attribute, _ = FAMILIES[family]
    model = getattr(__import__(module, fromlist=[attribute]), attribute)
    theirs = inspect.signature(model.__init__).parameters
    for name, mine in inspect.signature(ENCODER_MACS[family]).parameters.items():
        if mine.kind is not inspect.Parameter.VAR_KEYWORD and name != "crop":
            assert mine.default == theirs[name].default, name


def test_a_family_without_closed_form_has_no_cost() -> None:
    assert encoder_macs("vjepa2", {}) is None


def test_every_view_of_a_window_counts() -> None:
    spec = pipeline_spec()
    one = encoder_macs(spec.semantic.model, spec.semantic.config)
    assert one is not None
    assert row_macs(spec, "semantic") == 5 * one
    assert row_macs(spec, "regions") == 0


def test_bytes_of_a_row_are_about_what_a_build_writes(built_cache: Path) -> None:
    cache, spec = Cache(built_cache), load_recipe("demo").spec
    for name, part in spec.stages().items():
        stage = cache.stage(name, part.key)
        rows = sum(clip.n_rows for clip in stage.clips.values())
        sizes = Counter[str]()
        for array in stage.arrays.values():
            if array.codec == "raw":
                sizes["exact"] += array.row_bytes
        for path in (built_cache / "stages" / name / part.key[:16] / "features.zarr").glob("*/c/**/*"):
            sizes["disk"] += path.stat().st_size if path.is_file() else 0
        said = row_bytes(spec, name)
        assert said is not None
        if name == "segment":
            assert 0.5 < said / (sizes["disk"] / rows) < 2
        else:
            assert said == sizes["exact"]
