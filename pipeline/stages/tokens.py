"""Token maps: the tokens of a window pooled to a small grid and projected to a small width, on the device.

Both happen in the pass that computes the tokens, so that no full map is ever kept: 8 x 14 x 14 x 768 in float16
are 2.4 MB per window and view, 8 x 7 x 7 x 256 are 0.2 MB.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.encoders.contract import WindowEncoder
from pipeline.errors import UserError
from pipeline.spec import SemanticSpec


@dataclass(frozen=True)
class Projection:
    """tokens -> (tokens - mean) @ matrix; float32 [D] and [D, width]."""

    mean: Tensor
    matrix: Tensor


def token_map(tokens: Tensor, grid: tuple[int, int], projection: Projection | None) -> Tensor:
    """Tokens [B, T', H', W', D] to float16 [B, T', h, w, width]: adaptive average over space, then the projection.

    Computed in float32 whatever the precision of the encoder. Values beyond float16 become infinite; writing
    them refuses the clip.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        batch, times, *_, dim = tokens.shape
        planes = tokens.float().flatten(0, 1).movedim(-1, 1)  # [B * T', D, H', W']
        pooled = F.adaptive_avg_pool2d(planes, grid).movedim(1, -1).reshape(batch, times, *grid, dim)
        if projection is not None:
            pooled = (pooled - projection.mean) @ projection.matrix
        return pooled.half()


def random_projection(dim: int, width: int) -> Projection:
    """A random orthogonal projection [dim, width] that depends on nothing but its shape.

    Columns are orthonormal, from the QR decomposition (signs fixed) of Gaussian numbers in float64. RandomState,
    because numpy keeps its streams for ever. Distances between tokens are kept up to sqrt(width / dim) and a
    relative error of about 1 / sqrt(width).
    """
    name = f"bmoe-cache random projection {dim} x {width}"
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    q, r = np.linalg.qr(np.random.RandomState(seed).standard_normal((dim, width)))
    matrix = q * np.sign(np.diag(r))
    return Projection(torch.zeros(dim), torch.from_numpy(matrix.astype(np.float32)))


def load_projection(
    spec: SemanticSpec, model: WindowEncoder, path: Path | None, device: torch.device
) -> Projection | None:
    """The projection of a spec's token maps; None where tokens keep their width, or are not kept.

    Args:
        path: the file `bmoe-cache project` fitted, unless the projection is "random".

    Raises UserError when grid, width or file do not fit the encoder.
    """
    if spec.tokens is None:
        return None
    (height, width), dim = model.token_shape[1:], model.feature_dim
    if spec.tokens["grid"][0] > height or spec.tokens["grid"][1] > width:
        raise UserError(
            f"semantic.tokens.grid {list(spec.tokens['grid'])} is finer than the {height} x {width} tokens of "
            f"{spec.model}; give at most [{height}, {width}]"
        )
    wanted = spec.tokens["width"]
    if wanted is None:
        return None
    if path is None and wanted > dim:
        raise UserError(f"semantic.tokens.width {wanted} is more than the {dim} of {spec.model}; give less")
    found = random_projection(dim, wanted) if path is None else _read(path, spec, dim)
    return Projection(found.mean.to(device), found.matrix.to(device))


def _read(path: Path, spec: SemanticSpec, dim: int) -> Projection:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            encoder = (file.metadata() or {}).get("encoder")
            mean, matrix = file.get_tensor("mean").float(), file.get_tensor("components").float()
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: no projection ({error}); fit one with `bmoe-cache project`") from None
    assert spec.tokens is not None
    if encoder != spec.weights:
        raise UserError(f"{path}: fitted on tokens of other weights; fit it again with `bmoe-cache project`")
    if mean.shape != (dim,) or matrix.shape != (dim, spec.tokens["width"]):
        raise UserError(
            f"{path}: projects {matrix.shape[0]} to {matrix.shape[-1]}; set semantic.tokens.width to that, or fit "
            "it again with `bmoe-cache project`"
        )
    return Projection(mean, matrix)
