"""A backbone the presets do not know, brought by a preset file and a folder, through the whole semantic stage."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import VJEPA2Config, VJEPA2Model

from pipeline.presets import FOLDER, Recipe, load_recipe
from pipeline.run.build import build
from pipeline.store.reader import Cache

CONFIG = {
    "crop_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 1,
    "pred_hidden_size": 24, "pred_num_attention_heads": 1, "pred_num_hidden_layers": 1,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of weights that holds one hub folder: tiny-vjepa2."""
    torch.manual_seed(0)
    VJEPA2Model(VJEPA2Config(**CONFIG)).save_pretrained(tmp_path / "weights" / "tiny-vjepa2")
    return tmp_path / "weights"


@pytest.fixture
def recipe(tmp_path: Path, folder: Path) -> Recipe:
    preset = yaml.safe_load((FOLDER / "demo.yaml").read_text())
    preset["semantic"] = {"weights": "tiny-vjepa2", "windows": 2, "tokens": {"grid": [2, 2], "width": 8}}
    preset["weights"] = {
        "tiny-vjepa2": {
            "model": "vjepa2", "folder": True, "licence": "none", "citation": "none", "trained_on": "nothing",
        }
    }  # fmt: skip
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(preset))
    return load_recipe(str(tmp_path / "own.yaml"), folder)


def test_a_preset_of_ones_own_brings_a_backbone(built_cache: Path, tmp_path: Path, recipe: Recipe) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(built_cache, cache)
    computed = build(cache, "demo", recipe).computed
    assert computed == {"segment": 0, "regions": 0, "semantic": 12, "motion": 0}
    stage = Cache(cache).stage("semantic", recipe.spec.semantic.key)
    for key, rows in stage.clips.items():
        features, tokens = stage.read(key, "features"), stage.read(key, "tokens")
        assert features.shape == (2, 5, 24)
        assert tokens.shape == (2, 1, 8, 2, 2, 8)
        assert rows.facts["start_frames"] == [0, rows.facts["frames"] - 16]
        assert np.isfinite(features).all()
        assert (features[:, 0] != 0).any()


def test_both_files_of_the_folder_enter_the_key(tmp_path: Path, folder: Path, recipe: Recipe) -> None:
    config = folder / "tiny-vjepa2" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "layer_norm_eps": 1e-5}))
    changed = load_recipe(str(tmp_path / "own.yaml"), folder)
    assert changed.spec.semantic.key != recipe.spec.semantic.key
    assert changed.spec.motion.key == recipe.spec.motion.key
