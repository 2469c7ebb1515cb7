"""Small configurations and a state dict, for the tests of checkpoint files."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.encoders import create_model
from pipeline.errors import UserError

VIT = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_frames": 4, "num_classes": 5}
SEG = {"embed_dim": 32, "depth": 1, "num_heads": 2, "image_size": [48, 32], "head_channels": 8}
MANET = {"width": 16, "depths": [1, 1, 1, 1]}


def random_state(name: str, **config: Any) -> dict[str, Tensor]:
    """A state dict whose parameters are all different from what a fresh model has."""
    torch.manual_seed(0)
    model = create_model(name, **config)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return {key: value.clone() for key, value in model.state_dict().items()}


def refusal(call: Callable[[], object]) -> str:
    """The one-line message of the UserError that call ends in."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)
