"""VideoMAE, run by Hugging Face transformers: how a backbone of another library is added in one file.

Tong et al., "VideoMAE", NeurIPS 2022 (arXiv 2203.12602); folders as MCG-NJU/videomae-* on the hub have them. For
VideoMAE-V2 use the family videomaev2, which loads the original files.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEModel

from pipeline.encoders.tensors import read_tensors
from pipeline.errors import UserError

# What classifiers and pre-training models hold beside the encoder.
OTHER_PARTS = re.compile(r"(classifier|decoder|encoder_to_decoder|mask_token)\b")


class VideoMAEHF(nn.Module):
    """transformers' VideoMAEModel as a window encoder.

    Features are the mean token. Folders of fine-tuned classifiers also normalise it (fc_norm), as the classifier
    does, with the eps transformers gives that layer (1e-5; the original has 1e-6).

    Args:
        config: fields of transformers' VideoMAEConfig, as in config.json of a hub folder.
    """

    def __init__(self, *, config: Mapping[str, Any]) -> None:
        super().__init__()
        settings: Any = VideoMAEConfig(**config)
        self.videomae = VideoMAEModel(settings)
        classifies = "VideoMAEForVideoClassification" in (settings.architectures or ())
        self.feature_dim = settings.hidden_size
        mean_is_normed = classifies and settings.use_mean_pooling
        self.fc_norm = nn.LayerNorm(self.feature_dim) if mean_is_normed else nn.Identity()
        self.input_shape = (3, settings.num_frames, settings.image_size, settings.image_size)
        side = settings.image_size // settings.patch_size
        self.token_shape = (settings.num_frames // settings.tubelet_size, side, side)

    @classmethod
    def from_files(cls, path: Path) -> Self:
        """From a folder with config.json and model.safetensors, or the latter; strict.

        Raises UserError naming the folder.
        """
        folder = path if path.is_dir() else path.parent
        try:
            model = cls(config=json.loads((folder / "config.json").read_text()))
            held = read_tensors(folder / "model.safetensors")
            model.load_state_dict({_name(key): v for key, v in held.items() if not OTHER_PARTS.match(key)})
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{folder}: no VideoMAE folder of the hub ({reason}); fetch both files again"
            ) from None
        return model

    def forward(self, x: Tensor, tokens: bool = False) -> dict[str, Tensor]:
        """Normalised RGB [B, 3, T, H, W] to features [B, D] and, on demand, tokens [B, T', H', W', D]."""
        found = self.videomae(pixel_values=x.transpose(1, 2)).last_hidden_state  # time before channels
        outputs = {"features": self.fc_norm(found.mean(1))}
        if tokens:
            outputs["tokens"] = found.unflatten(1, self.token_shape)
        return outputs


def _name(key: str) -> str:
    """A tensor's name in VideoMAEHF from its name in a file."""
    key = key.replace(".q_bias", ".query.bias").replace(".v_bias", ".value.bias")  # until transformers 5.6
    return key if key.startswith(("videomae.", "fc_norm.")) else f"videomae.{key}"
