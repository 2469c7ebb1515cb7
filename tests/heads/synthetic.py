"""Feature sets with a planted signal, shaped like those of the demo world."""

import numpy as np
import torch

from heads.features import FeatureSet, SplitFeatures
from pipeline.spec import REGIONS
from pipeline.taxonomy import load_taxonomy

# The region in which a class shows: its expert's, or the hand's for the composites.
HOME = {10: "upper_limb", 11: "lower_limb"}


def synthetic(
    *,
    train: int = 240,
    val: int = 120,
    dim: int = 128,
    motion_dim: int = 128,
    steps: int = 8,
    strength: float = 1.0,
    person: float = 1.0,
    motion: float = 0.35,
    absent: float = 0.05,
    seed: int = 0,
) -> FeatureSet:
    """12 demo classes. A class is a direction in the view of its own region and a weaker one in the motion
    stream.

    Channels have their own mean and scale; every person has an offset (of scale `person`) in every view,
    and train and val share no person. The signal has an envelope in time with a random centre. Noise is
    unit white noise.
    """
    taxonomy = load_taxonomy("demo")
    assert taxonomy is not None
    rng = np.random.default_rng(seed)
    classes = len(taxonomy.labels)
    home = np.array(
        [
            REGIONS.index(HOME.get(c) or next(r for r, ids in taxonomy.experts.items() if c in ids))
            for c in range(classes)
        ]
    )
    directions = rng.normal(size=(classes, dim)).astype(np.float32)
    motion_directions = rng.normal(size=(classes, motion_dim)).astype(np.float32)
    shift, scale = rng.normal(size=(5, dim)), np.exp(0.7 * rng.normal(size=(5, dim)))
    splits = {}
    for name, count in (("train", train), ("val", val)):
        label = np.arange(count) % classes
        who = rng.integers(0, max(count // 12, 1), count)
        offset = person * rng.normal(size=(count, 5, dim))[who]
        offset_motion = person * rng.normal(size=(count, motion_dim))[who]
        centre = rng.uniform(1, steps - 1, count)
        envelope = np.exp(-0.5 * ((np.arange(steps)[None] - centre[:, None]) / 1.5) ** 2)[..., None]
        signal = strength * envelope * directions[label][:, None]
        x = rng.normal(size=(count, 5, steps, dim)) + offset[:, :, None]
        x[:, 0] += 0.3 * signal
        x[np.arange(count), home[label] + 1] += signal
        x = x * scale[:, None] + shift[:, None]
        valid = np.broadcast_to((rng.random((count, 4)) >= absent)[..., None], (count, 4, steps)).copy()
        x[:, 1:] *= valid[..., None]
        m = rng.normal(size=(count, 8, motion_dim)) + offset_motion[:, None]
        m += motion * np.resize(envelope, (count, 8, 1)) * motion_directions[label][:, None]
        tensors = {
            "sem_full": torch.from_numpy(x[:, 0].astype(np.float32)),
            "sem_full_valid": torch.ones(count, steps, dtype=torch.bool),
            "sem_parts": torch.from_numpy(x[:, 1:].astype(np.float32)),
            "sem_parts_valid": torch.from_numpy(valid),
            "motion": torch.from_numpy(m.astype(np.float32)),
        }
        clip_id = tuple(f"{name}/{i:04d}" for i in range(count))
        splits[name] = SplitFeatures(clip_id, torch.from_numpy(label.astype(np.int64)), tensors)
    counts = {name: {"used": len(s.clip_id)} for name, s in splits.items()}
    keys = {"semantic": "5e" * 32, "motion": "30" * 32}
    return FeatureSet("demo", taxonomy, splits, keys, dim, motion_dim, steps, "resample", counts)
