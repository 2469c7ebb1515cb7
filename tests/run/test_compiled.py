"""torch.compile through the whole build: same features, and a second run that starts warm."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.run.compiled import code_folder
from pipeline.store.reader import Cache
from tests.run.worlds import everything, import_clips

PROGRAM = (
    "import sys\nfrom pathlib import Path\nfrom pipeline.presets import load_recipe\n"
    "from pipeline.run.build import build\n"
    "recipe = load_recipe('demo', overrides=['run.compile=true'])\n"
    "print(build(Path(sys.argv[1]), 'demo', recipe, ('motion',)).seconds['compile'])\n"
)


def compiled_build(cache: Path) -> float:
    """Build the motion stage in a process of its own; returns the seconds of its cold start."""
    settings = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(cache)], capture_output=True, text=True, env=settings
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler on this machine"
)
def test_compiled_encoders_give_the_same_features_and_start_warm_the_second_time(
    small_world: Path, built_cache: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    import_clips(cache, small_world)
    cold = compiled_build(cache)
    assert any(code_folder(cache).rglob("*.so"))
    reader = Cache(cache)
    made = reader.stage("motion", reader.builds("demo")["stages"]["motion"])
    eager = everything(built_cache)
    for clip in made.clips:
        for array in made.arrays:
            np.testing.assert_allclose(
                np.asarray(made.read(clip, array), np.float32),
                eager["motion", array, clip].astype(np.float32),
                atol=4e-3,
            )
    shutil.rmtree(cache / "stages" / "motion")
    warm = compiled_build(cache)
    assert warm < 0.7 * cold
