"""The backbone that docs/encoders.md shows is one, and so is the segmenter of docs/segmentation.md."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model

from pipeline.encoders.checkpoints import load_encoder
from pipeline.encoders.contract import Segmenter
from pipeline.presets import FOLDER, load_recipe
from tests.encoders.segmenters import FRAMES, make_work

DOCS = Path(__file__).parents[2] / "docs" / "encoders.md"
SEGMENTER = DOCS.with_name("segmentation.md")


def test_the_example_loads_a_folder_and_answers_the_contract(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(DOCS), "exec"), names)  # noqa: S102
    config = {
        "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    torch.manual_seed(0)
    held = Dinov2Model(Dinov2Config(**config)).eval()
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(held.state_dict(), tmp_path / "model.safetensors")
    model = names["Dinov2Frames"].from_files(tmp_path, num_frames=2).eval()
    assert (model.input_shape, model.feature_dim, model.token_shape) == ((3, 2, 28, 28), 24, (2, 2, 2))
    x = torch.randn(3, *model.input_shape)
    with torch.inference_mode():
        out = model(x, tokens=True)
        frame = held(x[1:2, :, 1]).last_hidden_state[0, 1:]
    torch.testing.assert_close(out["tokens"][1, 1].flatten(0, 1), frame)
    torch.testing.assert_close(out["features"], out["tokens"].mean((1, 2, 3)))
    assert set(model(x)) == {"features"}


def test_the_segmenter_comes_with_its_package_and_its_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((_, code),) = re.findall(r"```(python)\n(.*?)```", SEGMENTER.read_text(), re.DOTALL)
    (entry,) = re.findall(r"```yaml\n(weights:.*?)```", SEGMENTER.read_text(), re.DOTALL)
    (tmp_path / "my_segmenter.py").write_text(code)
    about = tmp_path / "my_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[bmoe_cache.encoders]\nforeground = my_segmenter:Foreground\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    demo = yaml.safe_load((FOLDER / "demo.yaml").read_text())
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**demo, **yaml.safe_load(entry)}))
    recipe = load_recipe(str(tmp_path / "own.yaml"))
    spec = recipe.spec.segment
    model: Any = load_encoder(spec.model, spec.config, recipe.weights["segment"])
    assert isinstance(model, Segmenter)
    work = make_work()
    rows = model.inputs(torch.from_numpy(work.frames), spec, work.task, np.arange(FRAMES))
    logits = model(rows(0, FRAMES))["logits"]
    assert logits.shape == (FRAMES, 28, *model.image_size)
    assert set(logits.argmax(1).unique().tolist()) == {0, 21}
