"""The backbone that docs/encoders.md shows is one."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model

DOCS = Path(__file__).parents[2] / "docs" / "encoders.md"


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
