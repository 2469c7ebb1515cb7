"""An interrupted run goes on where it was, and ends with the bytes of a run that was left alone."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from heads.checkpoint import Checkpoint, read_state, stop_between_epochs, write_state
from heads.config import load_config
from heads.evaluate import evaluate
from heads.train import RunPlan, RunResult, train_group
from pipeline.errors import UserError
from tests.heads.synthetic import synthetic
from tests.heads.test_train import same_bytes

OPTIONS = ("stage1.epochs=3", "stage2.epochs=4", "loss.sampler=balanced", "tensorboard=true")
SMALL = synthetic(train=48, val=24, dim=32, motion_dim=24, steps=4)


class StopError(Exception):
    """An interruption."""


def run(
    folder: Path, stop: tuple[str, int] | None = None, overrides: tuple[str, ...] = ()
) -> list[RunResult]:
    def listen(record: dict) -> None:
        if stop and (record["stage"], record["epoch"]) == stop:
            raise StopError

    config = load_config("bmoe_tiny", [*OPTIONS, *overrides])
    plans = [RunPlan(folder / f"seed{seed}", config, seed) for seed in (0, 1)]
    return train_group(Path("x"), "demo", plans, features=SMALL, every_s=0, on_epoch=listen)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    run(folder)
    return folder


@pytest.mark.parametrize("stop", [("expert:body", 2), ("fusion", 1), ("fusion", 4)])
def test_an_interrupted_run_goes_on(stop: tuple[str, int], unbroken: Path, tmp_path: Path) -> None:
    """Told nothing twice, and the same bytes in every file."""
    with pytest.raises(StopError):
        run(tmp_path, stop)
    results = run(tmp_path)
    for result in results:
        name = result.run_dir.name
        assert same_bytes(result.run_dir, unbroken / name)
        assert not list(result.run_dir.glob("*state*"))
        events = list((result.run_dir / "tensorboard").iterdir())
        assert len(events) == 1
    kept = {p.name: p.read_bytes() for p in (tmp_path / "experts").iterdir()}
    assert kept == {p.name: p.read_bytes() for p in (unbroken / "experts").iterdir()}


def test_an_unfinished_run_is_not_evaluated(unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(StopError):
        run(tmp_path, ("fusion", 1))
    with pytest.raises(
        UserError, match="seed0: the run is not finished; run the same `train` command to go on"
    ):
        evaluate(tmp_path / "seed0", Path("x"), features=SMALL)
    lost = tmp_path / "lost"
    shutil.copytree(unbroken / "seed0", lost)
    (lost / "best.safetensors").unlink()
    with pytest.raises(UserError, match=r"best\.safetensors: cannot be read; train the run again"):
        evaluate(lost, Path("x"), features=SMALL)


@pytest.mark.parametrize(("number", "every_s"), [(signal.SIGKILL, 0), (signal.SIGINT, 1e9)])
def test_stopped_and_started_again(number: int, every_s: float, unbroken: Path, tmp_path: Path) -> None:
    """A real process, killed in the middle of stage 2, or asked to end before any state was written."""
    program = f"""
import signal
from pathlib import Path
import tests.heads.test_resume as t
told = []
def listen(record):
    told.append((record["stage"], record["epoch"]))
    if told[-1] == ("fusion", 3) and told.count(told[-1]) == 1:  # of the first seed
        signal.raise_signal({int(number)})
signal.signal(signal.SIGINT, signal.default_int_handler)  # some shells start with it ignored
config = t.load_config("bmoe_tiny", t.OPTIONS)
plans = [t.RunPlan(Path({str(tmp_path)!r}) / f"seed{{seed}}", config, seed) for seed in (0, 1)]
t.train_group(Path("x"), "demo", plans, features=t.SMALL, every_s={every_s}, on_epoch=listen)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == -number
    assert (tmp_path / "seed0" / "state.safetensors").exists()
    for result in run(tmp_path):
        assert same_bytes(result.run_dir, unbroken / result.run_dir.name)


@pytest.mark.parametrize(("signals", "ended"), [(1, True), (2, False)])
def test_a_second_signal_does_not_wait_for_the_epoch(signals: int, ended: bool) -> None:
    epochs = []

    def train() -> None:
        with stop_between_epochs():
            for _ in range(signals):
                signal.raise_signal(signal.SIGINT)
            epochs.append("ended")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train()
        assert bool(epochs) == ended
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_is_not_resumed(unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not empty"):
        run(unbroken)  # finished
    with pytest.raises(StopError):
        run(tmp_path, ("fusion", 2))
    with pytest.raises(UserError, match="not empty"):
        run(tmp_path, overrides=("alpha=1",))  # another config


def test_a_damaged_checkpoint_is_not_used(unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(StopError):
        run(tmp_path, ("fusion", 3))
    state = tmp_path / "seed0" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    for result in run(tmp_path):
        assert same_bytes(result.run_dir, unbroken / result.run_dir.name)


def test_checkpoint_file(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "new" / "x.safetensors"
    assert read_state(path) is None
    tensors = {"b": torch.arange(3.0), "a": torch.zeros(2, dtype=torch.uint8)}
    write_state(path, tensors, {"epoch": 3, "rank": float("-inf")})
    found = read_state(path)
    assert found is not None
    assert found[1] == {"epoch": 3, "rank": float("-inf")}
    assert all(torch.equal(found[0][name], tensor) for name, tensor in tensors.items())
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]
    (tmp_path / "any").touch()
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode  # the umask's, as of any file
    checkpoint = Checkpoint(path, "key", every_s=1000)
    assert checkpoint.load() is None
    assert not checkpoint.due()
    checkpoint.save(tensors, {"epoch": 1})
    assert checkpoint.load() is not None
    assert Checkpoint(path, "other").load() is None
    checkpoint.remove()
    checkpoint.remove()
    assert checkpoint.load() is None
