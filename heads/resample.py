"""From the windows of a clip to T time steps, as weights: y = weights @ x, for many clips of equally many windows."""

import numpy as np


def resample_weights(present: np.ndarray, starts: np.ndarray, t_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Linear interpolation in time to t_len steps from the first window to the last (for t_len 1, the middle).

    A step is valid where the nearer of its two windows is present (the earlier at equal distance). It is then
    the interpolation if both are, else the nearer one alone. Steps that are not valid have zero weights.

    Args:
        present: bool [n, W, V]. starts: [n, W], start frames, ascending.

    Returns:
        weights float32 [n, V, T, W], valid bool [n, V, T].
    """
    windows = present.shape[1]
    place = starts - starts[:, :1]
    place = place / np.maximum(place[:, -1:], 1e-9)  # [n, W] in 0..1
    target = np.linspace(0.0, 1.0, t_len) if t_len > 1 else np.array([0.5])
    low = (place[:, None, :] <= target[None, :, None]).sum(2) - 1
    low = np.clip(low, 0, max(windows - 2, 0))  # [n, T]
    high = np.minimum(low + 1, windows - 1)
    clips = np.arange(len(starts))[:, None]
    gap = np.maximum(place[clips, high] - place[clips, low], 1e-9)
    share = np.clip((target[None] - place[clips, low]) / gap, 0.0, 1.0) if windows > 1 else 0.0 * low
    has_low = present[clips, low].transpose(0, 2, 1)  # [n, V, T]
    has_high = present[clips, high].transpose(0, 2, 1)
    late = share[:, None] > 0.5
    valid = np.where(late, has_high, has_low)
    to_high = np.where(has_low & has_high, share[:, None], late)[..., None]
    steps = np.arange(windows)
    weights = (1 - to_high) * (low[..., None] == steps)[:, None] + to_high * (high[..., None] == steps)[
        :, None
    ]
    return (weights * valid[..., None]).astype(np.float32), valid


def truncate_weights(present: np.ndarray, t_len: int) -> tuple[np.ndarray, np.ndarray]:
    """The first t_len windows, then absent steps; arguments and results as `resample_weights`."""
    n, windows, views = present.shape
    valid = np.zeros((n, views, t_len), bool)
    keep = min(windows, t_len)
    valid[..., :keep] = present[:, :keep].transpose(0, 2, 1)
    return np.eye(t_len, windows, dtype=np.float32) * valid[..., None], valid
