"""V-JEPA 2, run by Hugging Face transformers: the encoder without its predictor.

Assran et al., "V-JEPA 2: Self-Supervised Video Models Enable Understanding, Prediction and Planning", 2025 (arXiv
2506.09985); folders as facebook/vjepa2-* on the hub have them.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import PositiveInt
from torch import Tensor, nn
from transformers import VJEPA2Config, VJEPA2Model

from pipeline.encoders.tensors import read_tensors
from pipeline.errors import UserError

OTHER_PARTS = re.compile(r"(predictor|pooler|classifier)\.")


class VJEPA2(nn.Module):
    """The encoder of transformers' VJEPA2Model as a window encoder.

    Tokens are normalised by the encoder's last layer and the feature is their mean. Positions are rotary, so
    windows may be of any even length, whatever the model was trained on.

    Args:
        config: fields of transformers' VJEPA2Config, as in config.json of a hub folder.
        num_frames: frames per window.
    """

    def __init__(self, *, config: Mapping[str, Any], num_frames: PositiveInt = 16) -> None:
        super().__init__()
        settings: Any = VJEPA2Config(**config)
        self.encoder = VJEPA2Model(settings).encoder
        self.feature_dim = settings.hidden_size
        self.input_shape = (3, num_frames, settings.crop_size, settings.crop_size)
        side = settings.crop_size // settings.patch_size
        self.token_shape = (num_frames // settings.tubelet_size, side, side)

    @classmethod
    def from_files(cls, path: Path, *, num_frames: PositiveInt = 16) -> Self:
        """From a folder with config.json and model.safetensors, or the latter; strict.

        Raises UserError naming the folder.
        """
        folder = path if path.is_dir() else path.parent
        try:
            model = cls(config=json.loads((folder / "config.json").read_text()), num_frames=num_frames)
            held = read_tensors(folder / "model.safetensors")
            state = {key.removeprefix("vjepa2."): value for key, value in held.items()}
            model.load_state_dict({key: v for key, v in state.items() if not OTHER_PARTS.match(key)})
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{folder}: no V-JEPA 2 folder of the hub ({reason}); fetch both files again"
            ) from None
        return model

    def forward(self, x: Tensor, tokens: bool = False) -> dict[str, Tensor]:
        """Normalised RGB [B, 3, T, H, W] to features [B, D] and, on demand, tokens [B, T', H', W', D]."""
        found = self.encoder(pixel_values_videos=x.transpose(1, 2)).last_hidden_state  # time before channels
        outputs = {"features": found.mean(1)}
        if tokens:
            outputs["tokens"] = found.unflatten(1, self.token_shape)
        return outputs
