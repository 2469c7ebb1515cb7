"""Deterministic synthetic checkpoints: every tensor is a function of its key, shape and a salt.

The goldens of this folder are what the original implementations answer with these tensors, so not a byte of
the arithmetic here may change.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np


def rng_for(name: str, salt: str = "") -> np.random.Generator:
    """The generator of one tensor."""
    seed = int.from_bytes(hashlib.sha256(f"{salt}:{name}".encode()).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64(seed))


def tensor(key: str, shape: Sequence[int], salt: str = "") -> np.ndarray:
    """Norm weights near 1, biases near 0, running variances in [0.5, 1.5], matrices N(0, 1/fan_in)."""
    rng = rng_for(key, salt)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    x = rng.standard_normal(tuple(shape), dtype=np.float32)
    if len(shape) <= 1:
        return 0.1 * x + (1.0 if key.endswith("weight") else 0.0)
    return x / np.float32(np.sqrt(np.prod(shape[1:])))


def state_dict(spec: Mapping[str, Sequence[int]], salt: str = "") -> dict[str, np.ndarray]:
    """All tensors of a spec {key: shape}."""
    return {key: tensor(key, shape, salt) for key, shape in spec.items()}


def array(name: str, shape: Sequence[int], salt: str = "") -> np.ndarray:
    """A standard-normal float32 input."""
    return rng_for("input:" + name, salt).standard_normal(tuple(shape), dtype=np.float32)
