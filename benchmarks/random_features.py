"""Random features of MA-52's classes, for benchmarks of training, where only shapes count."""

import torch

from heads.features import FeatureSet, SplitFeatures
from pipeline.spec import REGIONS
from pipeline.taxonomy import load_taxonomy


def random_features(
    steps: int, dim: int, motion_dim: int, clips: dict[str, int], device: str = "cpu"
) -> FeatureSet:
    """Every region of every clip present, labels in turn; as many clips as `clips` says by split.

    Values are those float16 can hold, as a cache's are.
    """
    taxonomy = load_taxonomy("ma52")
    assert taxonomy is not None
    dice = torch.Generator(device).manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=dice, device=device).half().float()

    splits = {}
    for name, count in clips.items():
        tensors = {
            "sem_full": drawn(count, steps, dim),
            "sem_full_valid": torch.ones(count, steps, dtype=torch.bool, device=device),
            "sem_parts": drawn(count, len(REGIONS), steps, dim),
            "sem_parts_valid": torch.ones(count, len(REGIONS), steps, dtype=torch.bool, device=device),
            "motion": drawn(count, 8, motion_dim),
        }
        label = torch.arange(count, device=device) % len(taxonomy.labels)
        splits[name] = SplitFeatures(tuple(f"{name}/{i}" for i in range(count)), label, tensors)
    counts = {name: {"used": count} for name, count in clips.items()}
    keys = {"semantic": "0" * 64, "motion": "1" * 64}
    return FeatureSet("ma52", taxonomy, splits, keys, dim, motion_dim, steps, "resample", counts)
