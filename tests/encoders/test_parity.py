"""The re-implementations give the numbers of the original code.

Goldens: outputs of the original public implementations (float32, CPU, evaluation) on synthetic checkpoints;
tiny ones lie here, full-size ones run where BMOE_PARITY names their folder.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.encoders import create_model

from .parity import synthetic

HERE = Path(__file__).parent / "parity"
LARGE = os.environ.get("BMOE_PARITY")
TOLERANCE = 2e-5

# case -> model, spatial step at which the golden samples logits, and labels
TINY = {
    "videomaev2_tiny": ("videomaev2", 1, 1),
    "manet_small": ("manet", 1, 1),
    "sapiens_seg_tiny": ("sapiens-seg", 4, 1),
}
FULL = {
    "videomaev2_small": ("videomaev2-small", 1, 1),
    "videomaev2_base": ("videomaev2-base", 1, 1),
    "manet_full": ("manet", 1, 1),
}
HUGE = {"sapiens_seg_0p3b": ("sapiens-seg-0.3b", 16, 4)}

needs_large = pytest.mark.skipif(
    LARGE is None, reason="BMOE_PARITY does not name the folder of full-size goldens"
)


def check(folder: Path, case: str, name: str, logits_step: int, labels_step: int) -> None:
    facts = json.loads((folder / f"{case}.json").read_text())
    keys = json.loads((folder / f"{case}.keys.json").read_text())
    golden = np.load(folder / f"{case}.npz", allow_pickle=False)
    with torch.device("meta"):
        model = create_model(name, **facts.get("config", {}))
    state = {
        key: torch.from_numpy(np.asarray(v)) for key, v in synthetic.state_dict(keys, facts["salt"]).items()
    }
    model.load_state_dict(state, strict=True, assign=True)
    spec = facts["input"]
    with torch.inference_mode():
        outputs = model.eval()(torch.from_numpy(synthetic.array(spec["name"], spec["shape"], facts["salt"])))
    assert len(golden.files) >= 2
    for output in golden.files:
        if output == "labels":
            labels = outputs["logits"].argmax(1)[:, ::labels_step, ::labels_step].numpy()
            assert labels.shape == golden["labels"].shape
            assert (labels == golden["labels"]).mean() >= 0.9999
            continue
        found = outputs[output].numpy()
        if found.ndim == 4:
            found = found[:, :, ::logits_step, ::logits_step]
        assert found.shape == golden[output].shape
        assert found.dtype == np.float32
        assert np.abs(found - golden[output]).max() <= TOLERANCE, output


@pytest.mark.parametrize("case", TINY)
def test_tiny_models_equal_the_originals(case: str) -> None:
    check(HERE, case, *TINY[case])


@needs_large
@pytest.mark.parametrize("case", FULL)
def test_full_size_models_equal_the_originals(case: str) -> None:
    check(Path(str(LARGE)), case, *FULL[case])


@pytest.mark.slow
@needs_large
@pytest.mark.parametrize("case", HUGE)
def test_sapiens_equals_the_original(case: str) -> None:
    check(Path(str(LARGE)), case, *HUGE[case])
