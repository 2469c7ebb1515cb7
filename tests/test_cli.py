"""The command line as its users meet it: what it prints, what it returns, how it says no."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import cli
from tests.run.worlds import bmoe

RUNNER = CliRunner()
ROOT = Path(cli.__file__).parent


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = RUNNER.invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_help_is_fast_and_loads_nothing_heavy() -> None:
    program = (
        "import sys, cli\n"
        "from typer.testing import CliRunner\n"
        "CliRunner().invoke(cli.app, ['--help'])\n"
        "print([m for m in ('torch', 'zarr', 'numpy', 'pydantic', 'pyarrow', 'cv2') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version() -> None:
    assert run("--version") == (0, f"bmoe-cache {version('bmoe-cache')}\n", "")


def test_planning_loads_no_torch(built_cache: Path) -> None:
    program = (
        "import sys, cli\nfrom typer.testing import CliRunner\n"
        f"words = ['plan', '--dataset', 'demo', '--preset', 'demo', '--cache', {str(built_cache)!r}]\n"
        "r = CliRunner().invoke(cli.app, words)\n"
        "print(r.exit_code, 'torch' in sys.modules, 'zarr' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 False False"


def test_info_accounts_for_every_clip(built_cache: Path) -> None:
    status, out, _ = run("info", "--dataset", "demo", "--cache", built_cache, "--json")
    assert status == 0
    assert json.loads(out)["clips"] == {"manifest": 12, "done": 12, "quarantined": 0, "pending": 0}
    status, out, _ = run("info", "--dataset", "demo", "--cache", built_cache)
    assert "12 clips = 12 done, 0 quarantined, 0 pending" in out


def test_plan_says_fresh(built_cache: Path) -> None:
    status, out, _ = run("plan", "--dataset", "demo", "--cache", built_cache, "--preset", "demo", "--json")
    assert status == 0
    assert {stage["state"] for stage in json.loads(out)["stages"]} == {"fresh"}


def test_the_world_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.demo.journey.render", lambda world, listen: len(world.parts))
    status, out, _ = run("demo", "--out", tmp_path, "--world-only", "--json")
    assert (status, json.loads(out)) == (0, {"rendered": len(tmp_path.parts) + 1})
    assert run("demo", "--out", tmp_path, "--wrold-only")[0] == 2


def test_dry_run_says_what_plan_says_and_makes_nothing(
    built_cache: Path, small_world: Path, tmp_path: Path
) -> None:
    words = ("--dataset", "demo", "--preset", "demo", "--cache", built_cache)
    changed = (*words, "--set", "regions.padding=0.17", "--json")
    status, out, _ = run("build", "--dry-run", *changed)
    assert (status, out) == (0, run("plan", *changed)[1])
    stages = {stage["stage"]: stage for stage in json.loads(out)["stages"]}
    assert {name: stage["state"] for name, stage in stages.items()} == {
        "segment": "fresh", "regions": "stale", "semantic": "stale", "motion": "fresh"}  # fmt: skip
    assert stages["regions"]["why"] == "region padding 0.10 -> 0.17"
    assert stages["semantic"]["hours"] > 0  # by the rate of the build
    assert stages["motion"]["hours"] == 0
    assert (
        run("build", "--dry-run", *words, "--set", "regions.padding=0.17")[1]
        .splitlines()[-1]
        .startswith("total")
    )
    cache = tmp_path / "cache"
    run("dataset", "import", "demo", "--root", small_world, "--cache", cache)
    status, out, _ = run("build", "--dry-run", "--dataset", "demo", "--preset", "demo", "--cache", cache)
    assert status == 0
    assert out.count("never computed") == 4
    assert not (cache / "stages").exists()
    assert not (cache / "builds").exists()


def test_touched_and_renamed_files_recompute_nothing(
    built_cache: Path, small_world: Path, tmp_path: Path
) -> None:
    """Another folder, other names, other times: the same bytes are the same clips."""
    cache, root = tmp_path / "cache", tmp_path / "root"
    shutil.copytree(built_cache, cache)
    root.mkdir()
    for number, path in enumerate(sorted(small_world.rglob("*.mp4"))):
        shutil.copy(path, root / f"{number}.mp4")  # copy sets the time to now
    run("dataset", "import", "renamed", "--as", "folder", "--root", root, "--cache", cache)
    for _ in range(2):
        status, out, _ = run("plan", "--dataset", "renamed", "--preset", "demo", "--cache", cache, "--json")
        record = json.loads(out)
        assert (status, record["clips"]["done"], record["clips"]["manifest"]) == (0, 12, 12)
        assert {stage["state"] for stage in record["stages"]} == {"fresh"}
        for path in root.iterdir():
            os.utime(path, (1, 1))


def test_import_reports_splits_and_build_is_pending_before(small_world: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    status, out, _ = run("dataset", "import", "demo", "--root", small_world, "--cache", cache, "--json")
    assert status == 0
    record = json.loads(out)
    assert (record["clips"], record["splits"]) == (12, {"train": 6, "val": 6})
    status, out, _ = run("info", "--dataset", "demo", "--cache", cache, "--json")
    assert json.loads(out)["clips"] == {"manifest": 12, "done": 0, "quarantined": 0, "pending": 12}


def test_validate(small_world: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    run("dataset", "import", "demo", "--root", small_world, "--cache", cache)
    status, out, _ = run("dataset", "validate", "demo", "--cache", cache, "--deep", "--json")
    report = json.loads(out)
    assert (status, report["errors"]) == (0, 0), report["problems"]
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "clips.csv").write_text("video_path\ngone.mp4\n")
    run("dataset", "import", "gone", "--as", "csv", "--root", tmp_path / "root", "--cache", cache)
    status, out, _ = run("dataset", "validate", "gone", "--cache", cache)
    assert status == 2
    assert "E_MISSING_FILE" in out


def test_preview_draws_the_clip(built_cache: Path, tmp_path: Path) -> None:
    clip = "demo:val:val_0012"
    status, out, _ = run(
        "preview", clip, "--dataset", "demo", "--cache", built_cache, "--out", tmp_path, "--json"
    )
    assert status == 0
    path = Path(json.loads(out)["previews"][clip])
    with Image.open(path) as picture:
        assert picture.size[0] > 900
        assert len(picture.getcolors(1 << 24)) > 1000


def test_preview_takes_the_path_of_a_video(built_cache: Path, tmp_path: Path) -> None:
    """As the clip table and the features.json of an export have it; the lines say which clips it is."""
    where = ("--dataset", "demo", "--cache", built_cache, "--out")
    assert run("export", *where, tmp_path / "x", "--to", "npz", "--json")[0] == 0
    entries = json.loads((tmp_path / "x" / "features.json").read_text())["database"].values()
    video = next(e["video_path"] for e in entries if e["clip_id"] == "demo:val:val_0012")
    assert run("preview", video, *where, tmp_path)[1] == (
        f"demo:val:val_0012 -> {tmp_path / 'demo_val_val_0012.png'}\n"
    )
    near = "near: demo:val:val_0012; `dataset export` lists all"
    assert near in run("preview", "val_0012.mp4", *where, tmp_path)[2]
    assert "the first: demo:train:" in run("preview", "nobody.mp4", *where, tmp_path)[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("info", "--dataset", "demo", "--cache", "nowhere"), ["nowhere", "not a cache"]),
        (("dataset", "import", "demo", "--root", "nowhere", "--cache", "c"), ["nowhere", "--root"]),
        (("dataset", "import", "mine", "--root", ".", "--cache", "c"), ["mine", "--as"]),
        (("evaluate", "nowhere", "--cache", "CACHE"), ["nowhere", "train first"]),
        (("preview", "x", "--dataset", "demo", "--cache", "CACHE"), ["'x'"]),
        (("plan", "--dataset", "demo", "--cache", "CACHE", "--preset", "none"), ["none", "demo"]),
        (("build", "--dataset", "other", "--cache", "CACHE", "--preset", "demo"), ["other", "import"]),
        (
            ("train", "--dataset", "demo", "--cache", "CACHE", "--set", "m3e.dept=1"),
            ["m3e.dept", "m3e.depth"],
        ),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    arguments: tuple[str, ...], words: list[str], built_cache: Path, tmp_path: Path
) -> None:
    arguments = tuple(str(built_cache) if a == "CACHE" else a for a in arguments)
    status, out, err = run(*arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_missing_weights_are_all_named_with_their_licence(built_cache: Path, tmp_path: Path) -> None:
    done = bmoe(
        "build", "--dataset", "demo", "--cache", built_cache, "--preset", "base", "--weights", tmp_path
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for word in ("sapiens_0.3b", "vit_b_k710", "MANet", "--weights", "weights fetch", "licence"):
        assert word in done.stderr


def test_training_from_the_cache_alone(built_cache: Path, tmp_path: Path) -> None:
    arguments = ("--head", "bmoe_demo", "--run", tmp_path / "run", "--set", "stage1.epochs=2")
    status, out, err = run(
        "train", "--dataset", "demo", "--cache", built_cache, *arguments, "--set", "stage2.epochs=3", "--json"
    )
    assert status == 0, err
    trained = json.loads(out)
    status, out, _ = run("evaluate", tmp_path / "run", "--cache", built_cache, "--json")
    assert status == 0
    assert json.loads(out)["top1"] == pytest.approx(trained["scores"]["top1"])
    info = json.loads((tmp_path / "run" / "info.json").read_text())
    assert "seeded" in info["label_vectors"]["source"]


def test_a_reader_that_has_enough_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "cli", "dataset", "list"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
def test_make_takes_paths_with_blanks() -> None:
    given = {name: f"/x/my {name.lower()}" for name in ("CACHE", "WEIGHTS", "RUN", "RUNS")}
    targets = ("segment", "extract", "train", "ablations")
    words = ["make", "-n", *targets, *(f"{name}={value}" for name, value in given.items())]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    said = [word for line in done.stdout.splitlines() if "bmoe-cache" in line for word in shlex.split(line)]
    assert set(given.values()) <= set(said)
    assert not {"my", "/x/my"} & set(said)
