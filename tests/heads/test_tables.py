"""Sweeps, ablations, figures and the submission, as their users call them, on a small real cache."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import cli
from heads import metrics, runs
from heads.ablate import _costs, streams_text
from heads.config import load_config
from heads.paper import paper, paper_row, side_by_side
from heads.runs import Predictions
from heads.submit import HEADER, check_submission
from heads.sweep import Job, Sweep, encoded, grid, train_all
from pipeline.errors import UserError
from pipeline.manifest import Manifest, manifest_path, read_manifest, write_manifest
from pipeline.spec import REGIONS
from pipeline.taxonomy import load_taxonomy, parse_taxonomy
from tests.heads.caches import make_cache

FAST = ("--set", "stage1.epochs=1", "--set", "stage2.epochs=2")


def call(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("tables") / "cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables") / "runs"


def common(cache: Path, folder: Path) -> tuple[object, ...]:
    where = ("--dataset", "demo", "--cache", cache, "--runs", folder)
    return (*where, "--head", "bmoe_tiny", "--seeds", "2", "--workers", "1", *FAST, "--json")


@pytest.fixture(scope="module")
def streams(cache: Path, folder: Path) -> dict:
    status, out, _ = call("ablate", "streams", *common(cache, folder))
    assert status == 0
    return json.loads(out)


def test_streams(streams: dict, folder: Path) -> None:
    """Tab. 3: the paper's numbers beside means over the runs, and nothing encoded."""
    rows = {row["row"]: row for row in streams["rows"]}
    assert list(rows) == ["semantic_only", "motion_only", "manet_cached", "both"]
    assert rows["both"]["paper"] == {"top1": 64.54, "f1_macro": 53.30}
    assert (streams["paper_dataset"], streams["same_data"], streams["encoder_forwards"]) == ("ma52", False, 0)
    for name, row in rows.items():
        job = "full" if name == "both" else name
        values = [json.loads((folder / f"{job}-seed{s}" / "result.json").read_text()) for s in (0, 1)]
        top1 = [value["scores"]["top1"] for value in values]
        assert row["scores"]["top1"]["values"] == top1
        assert row["scores"]["top1"]["mean"] == pytest.approx(np.mean(top1))
        assert row["scores"]["top1"]["std"] == pytest.approx(np.std(top1, ddof=1))
    others = [rows[name]["scores"]["top1"]["mean"] for name in ("semantic_only", "motion_only")]
    assert streams["both_beats_each"] == (rows["both"]["scores"]["top1"]["mean"] > max(others))
    cached = runs.read_predictions(folder / "manet_cached-seed0")
    assert json.loads((folder / "manet_cached-seed0" / "result.json").read_text())["parameters"] == 0
    assert rows["manet_cached"]["scores"]["top1"]["values"][0] == (
        (cached.probabilities.argmax(1) == cached.label).mean()
    )


@pytest.mark.parametrize("retrain", [True, False])
def test_experts(retrain: bool, streams: dict, cache: Path, folder: Path) -> None:
    """Tab. 4: the full runs are those of Tab. 3, their experts too."""
    assert streams["rows"]
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    words = () if retrain else ("--no-retrain",)
    status, out, _ = call("ablate", "experts", *words, *common(cache, folder))
    record = json.loads(out)
    assert (status, record["retrained"], record["encoder_forwards"]) == (0, retrain, 0)
    rows = [row["row"] for row in record["rows"]]
    assert rows == ["none", *(f"drop_{region}" for region in REGIONS)]
    assert all(row["paper"]["top1"] > 60 for row in record["rows"])
    assert before.items() <= {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}.items()
    if not retrain:
        scores = [row["scores"]["top1"]["values"] for row in record["rows"]]
        assert scores[0] == streams["rows"][-1]["scores"]["top1"]["values"]
    for row in rows[1:]:
        assert list(record["costs"][row]) == [*REGIONS, "composites"]
        own = max(REGIONS, key=record["costs"][row].get) == row.removeprefix("drop_")
        assert record["own_costs_most"][row] == own


def plain_cache(root: Path, experts: dict[str, tuple[int, ...]]) -> Path:
    """The demo's features under the taxonomy that an imported list gets: one group; and these expert classes."""
    cache = make_cache(root)
    path = manifest_path(cache, "demo")
    manifest = read_manifest(path)
    names = [label.name for label in manifest.taxonomy.labels]
    values = {"label_space": "own", "label_kind": "single", "labels": names, "experts": experts}
    write_manifest(replace(manifest, taxonomy=parse_taxonomy({"name": "demo", **values}, "demo")), path)
    return cache


@pytest.mark.parametrize(
    ("experts", "verdict"),
    [({}, None), ({"head": (0, 1), "body": (2,)}, "2 experts that have classes with clips")],
)
def test_experts_without_classes(
    experts: dict[str, tuple[int, ...]], verdict: str | None, tmp_path: Path
) -> None:
    """The table is whole; what experts cost on their own classes is said of those that have some."""
    words = common(plain_cache(tmp_path / "cache", experts), tmp_path / "runs")
    for more in ((), ("--no-retrain",)):
        status, out, _ = call("ablate", "experts", *more, *words)
        record = json.loads(out)
        assert status == 0
        assert [row["row"] for row in record["rows"]] == ["none", *(f"drop_{r}" for r in REGIONS)]
        assert list(record["own_costs_most"]) == [f"drop_{name}" for name in experts]
        assert bool(record["costs"]) == bool(experts)
        text = call("ablate", "experts", *more, *words[:-1])[1]
        assert verdict in text if verdict else "costs most" not in text and "cost by" not in text
        scores = record["rows"][0]["scores"]  # no group to be right about
        assert not [name for name in scores if name.startswith("coarse") or name == "f1_mean"]


def test_train_says_that_stage_1_was_left_out(tmp_path: Path) -> None:
    cache = plain_cache(tmp_path / "cache", {})
    words = ("train", "--dataset", "demo", "--cache", cache, "--head", "bmoe_tiny", *FAST)
    text = call(*words, "--run", tmp_path / "none")[1]
    assert "stage 1 was left out: the dataset gives the experts no classes with clips; --set" in text
    given = ("--set", "expert_classes={head: [0, 1]}", "--run")
    text = call(*words, *given, tmp_path / "some")[1]
    assert "stage 1 was left out for body, upper_limb, lower_limb: " in text
    record = json.loads(call(*words, *given, tmp_path / "json", "--json")[1])
    assert (list(record["experts"]), record["experts_without_stage1"]) == (["head"], list(REGIONS[1:]))
    record = json.loads(call(*words, "--set", "semantic.enabled=false", "--run", tmp_path / "m", "--json")[1])
    assert record["experts_without_stage1"] == []


def test_tables_of_clips_with_several_labels(tmp_path: Path) -> None:
    """They have no top-1: the tables show mAP."""
    cache = make_cache(tmp_path / "cache")
    path = manifest_path(cache, "demo")
    manifest = read_manifest(path)
    taxonomy = parse_taxonomy(manifest.taxonomy.model_dump() | {"label_kind": "multi"}, "demo")
    clips = tuple(replace(clip, label_kind="multi") for clip in manifest.clips)
    write_manifest(Manifest("demo", manifest.root, taxonomy, clips), path)
    words = common(cache, tmp_path / "runs")
    record = json.loads(call("ablate", "streams", *words)[1])
    means = {row["row"]: row["scores"]["map"]["mean"] for row in record["rows"]}
    others = max(means["semantic_only"], means["motion_only"])
    assert (record["score"], record["both_beats_each"]) == ("map", means["both"] > others)
    for command in (
        ("ablate", "streams"),
        ("ablate", "experts"),
        ("ablate", "experts", "--no-retrain"),
        ("sweep",),
    ):
        out = call(*command, *words[:-1])[1]  # read back but for sweep; as text
        assert " mAP" in out
    assert f"{100 * means['both']:.2f} ±" in streams_text(record)
    assert "(mean mAP)" in streams_text(record)


def test_without_an_expert_its_attention_is_nothing(streams: dict, cache: Path, folder: Path) -> None:
    from heads.evaluate import restore
    from heads.loop import predict

    assert streams["rows"]
    run = restore(folder / "full-seed0", cache)
    run.model.silent = ("body",)
    attention = predict(run.model, run.data)["attn"]
    assert (attention[:, REGIONS.index("body")] == 0).all()
    assert attention.sum(1).allclose(attention.new_ones(len(attention)))


def test_costs_by_hand() -> None:
    label = np.array([0, 0, 1, 1, 2])
    right, wrong = np.eye(3)[label], np.eye(3)[[0, 1, 0, 0, 2]]
    full = [Predictions(("",) * 5, label, right, None)]
    dropped = [Predictions(("",) * 5, label, wrong, None)]
    found = _costs(full, dropped, {"head": [0], "body": [1], "none": [2, 3], "gone": [4]})
    assert found == {"head": 0.5, "body": 1.0, "none": 0.0}


def test_explain_attention(streams: dict, folder: Path, tmp_path: Path) -> None:
    """Rows are the means of the stored weights, in the paper's order of regions."""
    assert streams["rows"]
    chosen = [folder / f"full-seed{seed}" for seed in (0, 1)]
    words = ("--out", tmp_path / "a.csv", "--json")
    status, out, _ = call("explain", "attention", *chosen, *words)
    assert (status, call("explain", "attention", folder / "full", *words)[1]) == (
        0,
        out,
    )  # all seeds of a job
    record = json.loads(out)
    assert record["encoder_forwards"] == 0
    assert record["experts"] == ["head", "upper_limb", "body", "lower_limb"]
    order = [REGIONS.index(name) for name in record["experts"]]
    found = [runs.read_predictions(run) for run in chosen]
    each = [p.attention[p.label == 3].mean(0)[order] for p in found if p.attention is not None]
    np.testing.assert_allclose(record["attention"][3], np.mean(each, 0), atol=1e-6)
    np.testing.assert_allclose(record["std"][3], np.std(each, 0, ddof=1), atol=1e-6)
    np.testing.assert_allclose(np.sum(record["attention"], 1), 1, atol=1e-5)
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["class", "clips", *record["experts"], *(f"{name}_std" for name in record["experts"])]
    assert [float(v) for v in rows[4][2:6]] == pytest.approx(record["attention"][3], abs=1e-6)
    assert len(rows) == 13
    with Image.open(tmp_path / "a.png") as picture:
        assert len(set(picture.convert("RGB").get_flattened_data())) > 20
    status, _, err = call("explain", "attention", folder / "motion_only-seed0")
    assert (status, "has no attention" in err) == (2, True)


def test_compare(streams: dict, folder: Path, tmp_path: Path) -> None:
    assert streams["rows"]
    a, b = folder / "full-seed0", folder / "manet_cached-seed0"
    status, out, _ = call("compare", a, b, "--out", tmp_path / "bars.png", "--json")
    record = json.loads(out)
    assert status == 0
    total = metrics.scores(runs.read_predictions(a).label, runs.read_predictions(a).probabilities)["top1"]
    assert sum(row["a_hits"] for row in record["rows"]) / 12 == pytest.approx(total)
    assert sum(row["train_share"] for row in record["rows"]) == pytest.approx(1)
    assert {row["clips"] for row in record["rows"]} == {1}
    assert all(row["paper"] is None for row in record["rows"])  # other data than Fig. 6
    with Image.open(tmp_path / "bars.png") as picture:
        assert picture.width > 400
    assert call("compare", a, tmp_path)[0] == 2
    seeds = json.loads(call("compare", folder / "full", folder / "manet_cached", "--json")[1])
    assert [len(seeds[side]) for side in "ab"] == [2, 2]
    hits = [(p.probabilities.argmax(1) == p.label) for p in map(runs.read_predictions, map(Path, seeds["a"]))]
    assert [row["a"] for row in seeds["rows"]] == np.mean(hits, 0).tolist()  # one clip per class
    assert [row["a_std"] for row in seeds["rows"]] == pytest.approx(np.std(hits, 0, ddof=1).tolist())
    assert {row["b_std"] for row in seeds["rows"]} == {0.0}
    lines = call("compare", folder / "full", folder / "manet_cached")[1].splitlines()
    assert lines[-1] == "A: 2 runs, B: 2, from stored predictions; encoder forwards: 0"


def test_predict_writes_a_submission(streams: dict, cache: Path, folder: Path, tmp_path: Path) -> None:
    """One row per clip of the split, the unlabelled and the unreadable too."""
    assert streams["rows"]
    words = (
        folder / "full-seed0",
        "--cache",
        cache,
        "--split",
        "train",
        "--out",
        tmp_path / "p.csv",
        "--json",
    )
    status, out, _ = call("predict", *words)
    assert status == 0
    assert json.loads(out) == {"rows": 29, "without_features": 4, "csv": str(tmp_path / "p.csv")}
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = {row["vid"]: row for row in csv.DictReader(file)}
    assert set(next(iter(rows.values()))) == set(HEADER)
    coarse = (0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5)
    for row in rows.values():
        actions = [int(row[f"action_pred_{i}"]) for i in range(1, 6)]
        assert [int(row[f"body_pred_{i}"]) for i in range(1, 6)] == [coarse[a] for a in actions]
    evaluate = ("evaluate", folder / "full-seed0", "--cache", cache, "--split", "train")
    assert call(*evaluate)[0] == 0
    known = runs.read_predictions(folder / "full-seed0", "_train")
    first = {clip: int(p.argmax()) for clip, p in zip(known.clip_id, known.probabilities, strict=True)}
    assert all(int(rows[f"{clip}.mp4"]["action_pred_1"]) == best for clip, best in first.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("vid,", "id,"), "line 1: must be vid,action_pred_1"),
        (lambda t: t.replace("b.mp4", "a.mp4"), "E_BASENAME_COLLISION"),
        (lambda t: t.replace("b.mp4", "c.mp4"), "first difference: b.mp4"),
        (lambda t: t.replace("a.mp4,0,", "a.mp4,1,"), "line 2: needs 5 distinct actions of 0..5"),
        (lambda t: t.replace("a.mp4,0,", "a.mp4,9,"), "line 2: needs 5 distinct"),
        (lambda t: t.replace("0,0,1,1,2\r\nb", "0,0,1,1,1\r\nb"), "line 2: body groups"),
    ],
)
def test_submission_rules(change: object, message: str) -> None:
    text = ",".join(HEADER) + "\r\na.mp4,0,1,2,3,4,0,0,1,1,2\r\nb.mp4,4,3,2,1,0,2,1,1,0,0\r\n"
    coarse = np.array([0, 0, 1, 1, 2, 2])
    check_submission(text, ["a.mp4", "b.mp4"], coarse)
    assert callable(change)
    with pytest.raises(UserError, match=message):
        check_submission(change(text), ["a.mp4", "b.mp4"], coarse)


def test_sweep_grid(cache: Path, tmp_path: Path) -> None:
    """A grid is every combination; finished runs are read back, and only on the same config and data."""
    assert [name for name, _ in grid((), ("t_len=2,4", "alpha=1,5"))] == [
        "t_len=2_alpha=1", "t_len=2_alpha=5", "t_len=4_alpha=1", "t_len=4_alpha=5",
    ]  # fmt: skip
    assert grid(("a=1",), ()) == [("base", ("a=1",))]
    with pytest.raises(UserError, match="write KEY=A,B"):
        grid((), ("t_len",))
    words = ("sweep", *common(cache, tmp_path), "--vary", "te.layers=0,1")
    record = json.loads(call(*words)[1])
    assert [row["row"] for row in record["rows"]] == ["te.layers=0", "te.layers=1"]
    assert record["encoder_forwards"] == 0
    assert record["rows"][0]["paper"] == {"top1": 64.54, "f1_macro": 53.30, "dataset": "ma52"}
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert json.loads(call(*words)[1]) == record
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    sweep = Sweep(cache, "demo", tmp_path, (0, 1))
    job = Job("te.layers=0", load_config("bmoe_tiny", ["te.layers=0", "stage2.epochs=1"]))
    with pytest.raises(UserError, match=r"te\.layers=0-seed0: holds a run of another config"):
        train_all(sweep, [job])
    assert encoded(cache, "demo") == 74


@pytest.mark.slow
def test_processes_give_what_one_process_gives(cache: Path, tmp_path: Path) -> None:
    """With one thread each, runs in two processes have the bytes of runs trained one after the other."""
    import torch

    config = load_config("bmoe_tiny", ["d_model=80", "stage1.epochs=1", "stage2.epochs=1"])
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for workers in (1, 2):
            sweep = Sweep(cache, "demo", tmp_path / str(workers), (0, 1), workers=workers)
            assert len(train_all(replace(sweep), [Job("a", config)])["a"]) == 2
    finally:
        torch.set_num_threads(before)
    for seed in (0, 1):
        files = [(tmp_path / w / f"a-seed{seed}" / "best.safetensors").read_bytes() for w in ("1", "2")]
        assert files[0] == files[1]


def test_ctrl_c_ends_the_processes_without_a_word_of_theirs(cache: Path, tmp_path: Path) -> None:
    """As a terminal does it: every process of the group is told. One line, from the command alone."""
    words = ("--dataset", "demo", "--cache", cache, "--runs", tmp_path, "--head", "bmoe_tiny", "--seeds", "1")
    long = (
        "--workers",
        "3",
        "--set",
        "d_model=80",
        "--set",
        "stage1.epochs=100000",
        "--set",
        "stage2.epochs=1",
    )
    command = [sys.executable, "-m", "cli", "ablate", "streams", *map(str, words), *long]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        done = tmp_path / "motion_only-seed0" / "result.json"  # it has no stage 1; its process waits for more
        while not done.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.endswith("stopped; what is finished is kept, run the same command to go on\n")


def test_paper_numbers() -> None:
    """The file is consistent with itself: accuracies are hits over clips, F1_mean is the mean of four."""
    for name, row in paper()["fig6"].items():
        for who in ("a", "b"):
            assert row[who] == pytest.approx(100 * row[f"{who}_hits"] / row["clips"], abs=0.005), name
    official = dict(paper()["official"]["MANet"])
    mean = official.pop("f1_mean")
    assert round(sum(official.values()) / 4, 2) == mean == 65.59
    taxonomy = load_taxonomy("ma52")
    assert taxonomy is not None
    known = {label.name for label in taxonomy.labels}
    for figure in (paper()["fig5"]["largest"], paper()["fig6"]):
        assert set(figure) <= known
    assert paper_row("mpii_gi", load_config("bmoe_tiny"))["top1"] == 69.43
    assert paper_row("ma52", load_config("gs_moe_b"))["top1"] == 56.93
    assert paper_row("ma52", load_config("bmoe_tiny"), "drop_head")["top1"] == 62.01
    assert paper_row("ma52", load_config("linear_probe")) is None
    tables = paper()["tables"]
    assert tables["tab3"]["both"] == tables["tab4"]["none"] == tables["tab1"]["B_MoE"]
    assert not side_by_side("tab3", "demo", {"both": [{"top1": 1.0}]})["same_data"]
    assert side_by_side("tab3", "ma52", {"both": [{"top1": 1.0}]})["same_data"]


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99"])
def test_a_device_that_is_not_there(device: str, cache: Path, tmp_path: Path) -> None:
    words = ("train", "--dataset", "demo", "--cache", cache, "--run", tmp_path / "run", "--device", device)
    code, _, err = call(*words)
    assert code == 2
    assert err.startswith(f"error: --device {device}: torch finds cpu")
    assert not (tmp_path / "run").exists()
