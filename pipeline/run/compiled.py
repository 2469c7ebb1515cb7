"""torch.compile for the encoders: shapes are fixed, and the compiled code is kept beside the cache."""

import os
import shutil
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import UserError


def code_folder(cache: Path) -> Path:
    """CACHE.compiled, where inductor keeps what it compiled: the next run on this machine starts warm."""
    cache = cache.resolve()
    return cache.with_name(cache.name + ".compiled")


def prepare_compiler(cache: Path, device: torch.device) -> None:
    """Point inductor at the cache's code folder (TORCHINDUCTOR_CACHE_DIR in the environment wins).

    Raises UserError where there is nothing to compile with.
    """
    compilers = [os.environ.get("CXX", "g++"), "clang++"]
    lacking = [] if any(map(shutil.which, compilers)) else ["a C++ compiler"]
    if device.type == "cuda" and find_spec("triton") is None:
        lacking.append("triton")
    if lacking:
        raise UserError(
            f"run.compile needs {' and '.join(lacking)}, not found here; install it or --set run.compile=false"
        )
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(code_folder(cache)))


def compile_encoder(model: nn.Module, on_cold: Callable[[float], None]) -> None:
    """Compile the model's forward in place; on_cold gets the seconds of its first call, which compiles."""
    compiled = torch.compile(model.forward, dynamic=False)
    cold = True

    def forward(*args: Any, **options: Any) -> Any:
        nonlocal cold
        began = time.perf_counter()
        out = compiled(*args, **options)
        if cold:
            cold = False
            on_cold(time.perf_counter() - began)
        return out

    model.forward = forward
