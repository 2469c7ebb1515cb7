"""Training: it learns a planted signal, repeats to the byte, and writes a run that reloads."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from heads import spec
from heads.config import load_config, variant_config
from heads.evaluate import evaluate
from heads.features import FeatureSet, load_features
from heads.labels import label_vectors
from heads.loop import _factor, fit, predict
from heads.m3e import ExpertHeads
from heads.runs import epoch_line, load_state
from heads.stages import Expert
from heads.train import RunResult, train
from pipeline.errors import UserError
from pipeline.spec import REGIONS
from tests.heads.caches import make_cache
from tests.heads.synthetic import synthetic

TINY = load_config("bmoe_tiny")
SMALL = synthetic(train=48, val=24, dim=32, motion_dim=24, steps=4)


def run(
    path: Path, overrides: tuple[str, ...] = (), seed: int = 0, data: FeatureSet = SMALL, **more: object
) -> RunResult:
    config = load_config("bmoe_tiny", overrides)
    return train(Path("unused"), "demo", config, path, seed, features=data, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(tmp_path_factory.mktemp("run") / "a")


def test_learns_a_planted_signal(tmp_path: Path) -> None:
    """Above 0.9 on people never seen, where chance is 1/12; each expert knows its own classes."""
    data = synthetic(train=144, val=96, dim=32, motion_dim=24, steps=4, strength=3.0, person=0.5)
    records: list[dict] = []
    config = load_config(
        "bmoe_tiny",
        [
            "d_model=32",
            "sgp.hidden=32",
            "stage1.epochs=6",
            "stage1.batch=8",
            "stage1.lr=0.003",
            "stage2.epochs=6",
            "stage2.batch=16",
            "stage2.lr=0.003",
        ],
    )
    result = train(Path("unused"), "demo", config, tmp_path / "run", features=data, on_epoch=records.append)
    assert result.top1 > 0.9
    assert result.f1_macro > 0.9
    best = {s: max(r["val_top1"] for r in records if r["stage"] == s) for s in {r["stage"] for r in records}}
    assert set(best) == {"fusion", *(f"expert:{r}" for r in REGIONS)}
    assert min(best.values()) > 0.8


def test_shuffled_labels_teach_nothing(tmp_path: Path) -> None:
    """The control: with labels shuffled in train the same training stays near chance on val."""
    data = synthetic(train=96, val=96, dim=32, motion_dim=24, steps=4, strength=3.0)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(1))
    shuffled = replace(data.splits["train"], label=data.splits["train"].label[order])
    result = run(tmp_path / "run", data=replace(data, splits=data.splits | {"train": shuffled}))
    assert result.top1 < 0.35


def test_run_folder(finished: RunResult) -> None:
    folder = finished.run_dir
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "info.json", "metrics.jsonl", "experts", "best.safetensors", "last.safetensors",
        "predictions.npz", "confusion.csv", "result.json",
    }  # fmt: skip
    assert {p.stem for p in (folder / "experts").iterdir()} == set(REGIONS)
    info = json.loads((folder / "info.json").read_text())
    assert info["stages"] == SMALL.keys
    assert info["seed"] == 0
    assert info["label_vectors"]["source"].startswith("seeded table")
    assert info["clips_per_class"]["train"] == [4] * 12
    assert info["versions"]["torch"] == torch.__version__
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    fusion = [r for r in records if r["stage"] == "fusion"]
    assert [r["epoch"] for r in fusion] == list(range(1, len(fusion) + 1))
    assert max(r["val_top1"] for r in fusion) == finished.top1
    assert fusion[finished.best_epoch - 1]["val_top1"] == finished.top1
    expert = next(r for r in records if r["stage"] == "expert:head")
    assert expert["loss"] == pytest.approx(expert["ce"] + 50 * expert["emb"], rel=1e-5)
    assert "emb" not in fusion[0]
    assert epoch_line(fusion[0]).startswith("fusion 1/5  loss ")
    with np.load(folder / "predictions.npz", allow_pickle=False) as arrays:
        assert arrays["clip_id"].tolist() == list(SMALL.splits["val"].clip_id)
        assert (arrays["label"] == SMALL.splits["val"].label.numpy()).all()
        np.testing.assert_allclose(arrays["probabilities"].sum(1), 1, rtol=1e-5)
        np.testing.assert_allclose(arrays["attention"].sum(1), 1, rtol=1e-5)
        assert (arrays["probabilities"].argmax(1) == arrays["label"]).mean() == finished.top1
    with (folder / "confusion.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == [label.name for label in SMALL.taxonomy.labels]
    counts = np.array([row[1:] for row in rows[1:]], int)
    assert counts.sum(1).tolist() == [2] * 12
    assert counts.trace() / counts.sum() == finished.top1
    assert json.loads((folder / "result.json").read_text())["scores"] == finished.scores


def test_same_seed_same_bytes(finished: RunResult, tmp_path: Path) -> None:
    again = run(tmp_path / "b")
    names = [
        "metrics.jsonl",
        "best.safetensors",
        "last.safetensors",
        "predictions.npz",
        "confusion.csv",
        "config.json",
    ]
    for name in [*names, "info.json", "experts/head.safetensors"]:
        assert (again.run_dir / name).read_bytes() == (finished.run_dir / name).read_bytes(), name
    other = run(tmp_path / "c", seed=1)
    assert (other.run_dir / "best.safetensors").read_bytes() != (
        finished.run_dir / "best.safetensors"
    ).read_bytes()


def test_does_not_touch_the_global_generator(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(tmp_path / "run", ("stage1.epochs=1", "stage2.epochs=1"))
    assert torch.equal(torch.rand(3), expected)


def test_evaluate_reloads(finished: RunResult) -> None:
    assert evaluate(finished.run_dir, Path("unused"), features=SMALL) == finished.scores
    train_scores = evaluate(finished.run_dir, Path("unused"), "train", features=SMALL)
    assert set(train_scores) == set(finished.scores)
    for name in ("predictions_train.npz", "confusion_train.csv"):
        (finished.run_dir / name).unlink()  # as evaluated; the folder is shared by the tests


def test_evaluate_refuses(finished: RunResult, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trained on semantic 5e5e5e5e5e5e5e5e, the cache has abab"):
        evaluate(
            finished.run_dir, tmp_path, features=replace(SMALL, keys=SMALL.keys | {"semantic": "ab" * 32})
        )
    with pytest.raises(UserError, match="not a run folder"):
        evaluate(tmp_path, tmp_path, features=SMALL)
    with pytest.raises(UserError, match="no usable clip in split test"):
        evaluate(finished.run_dir, tmp_path, "test", features=SMALL)
    with pytest.raises(UserError, match=r"nope.safetensors: cannot be read"):
        evaluate(finished.run_dir, tmp_path, features=SMALL, checkpoint="nope")
    with pytest.raises(UserError, match=r"experts.body.in_proj.weight is"):
        evaluate(finished.run_dir, tmp_path, features=replace(SMALL, dim=64))


def test_experts_from_another_run(finished: RunResult, tmp_path: Path) -> None:
    """Stage 2 from stored experts equals the run that trained them; variants reuse them."""
    again = run(tmp_path / "again", experts_from=finished.run_dir)
    assert (again.run_dir / "best.safetensors").read_bytes() == (
        finished.run_dir / "best.safetensors"
    ).read_bytes()
    assert not (again.run_dir / "experts").exists()
    config = variant_config(TINY, "drop_head")
    dropped = train(
        Path("unused"), "demo", config, tmp_path / "drop", features=SMALL, variant="drop_head",
        experts_from=finished.run_dir,
    )  # fmt: skip
    assert dropped.parameters < finished.parameters
    other = replace(SMALL, keys=SMALL.keys | {"semantic": "ab" * 32})
    with pytest.raises(UserError, match="other semantic features"):
        run(tmp_path / "other", data=other, experts_from=finished.run_dir)


def test_stage1_loss_by_hand(tmp_path: Path) -> None:
    """At a learning rate of nothing the record holds CE over the region's classes and the mean squared
    error of the embedding, over the clips of those classes whose region is present.
    """
    data = synthetic(train=48, val=24, dim=32, motion_dim=24, steps=4, absent=0.3)
    still = ("stage1.lr=1e-30", "stage1.epochs=1", "stage1.batch=7", "stage2.epochs=0", "normalise=none")
    records: list[dict] = []
    result = run(tmp_path / "run", still, data=data, on_epoch=records.append)
    config = load_config("bmoe_tiny", still)
    vectors = torch.from_numpy(label_vectors([label.name for label in data.taxonomy.labels]).vectors)
    model = spec.build(config, data.info(vectors.numpy()))
    for row, region in enumerate(REGIONS):
        classes = data.taxonomy.experts[region]
        expert = Expert(model.experts[region], ExpertHeads(16, len(classes)))
        load_state(result.run_dir / "experts" / f"{region}.safetensors", expert)
        split = data.splits["train"]
        x, valid = split.tensors["sem_parts"][:, row], split.tensors["sem_parts_valid"][:, row]
        chosen = [i for i, c in enumerate(split.label.tolist()) if c in classes and valid[i].any()]
        assert 0 < len(chosen) < sum(c in classes for c in split.label.tolist())
        logits, embedding = expert(x[chosen], valid[chosen])
        local = torch.tensor([classes.index(c) for c in split.label[chosen].tolist()])
        record = next(r for r in records if r["stage"] == f"expert:{region}")
        assert record["ce"] == pytest.approx(F.cross_entropy(logits, local).item(), rel=1e-4)
        emb = (embedding - vectors[split.label[chosen]]).square().mean().item()
        assert record["emb"] == pytest.approx(emb, rel=1e-4)
        assert record["loss"] == pytest.approx(record["ce"] + 50 * record["emb"], rel=1e-5)


def test_stage1_starts_stage2(tmp_path: Path) -> None:
    """With no epoch of stage 2 the head holds exactly the best experts of stage 1."""
    records: list[dict] = []
    wild = ("stage1.epochs=6", "stage1.lr=0.1", "stage2.epochs=0")
    result = run(tmp_path / "run", wild, on_epoch=records.append)
    best = load_file(result.run_dir / "best.safetensors")
    for region in REGIONS:
        expert = load_file(result.run_dir / "experts" / f"{region}.safetensors")
        for name, tensor in expert.items():
            if name.startswith("m3e."):
                assert torch.equal(best[f"experts.{region}.{name.removeprefix('m3e.')}"], tensor), name
    scores = [[r["val_top1"] for r in records if r["stage"] == f"expert:{region}"] for region in REGIONS]
    assert any(max(s) > s[-1] for s in scores)  # for some region the best epoch was not the last
    assert not any("fc_emb" in name or "fc_cls" in name for name in best)  # stage 2 does not touch L_emb
    assert result.best_epoch == 0


def test_motion_only_and_no_val(tmp_path: Path) -> None:
    config = variant_config(load_config("bmoe_tiny", ["stage2.epochs=2"]), "motion_only")
    result = train(Path("unused"), "demo", config, tmp_path / "m", features=SMALL, variant="motion_only")
    assert not (result.run_dir / "experts").exists()
    assert evaluate(result.run_dir, Path("unused"), features=SMALL) == result.scores
    only_train = replace(SMALL, splits={"train": SMALL.splits["train"]})
    result = run(tmp_path / "t", ("stage1.epochs=1", "stage2.epochs=2"), data=only_train)
    assert (result.split, result.best_epoch) == ("train", 2)


def test_refuses(finished: RunResult, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not empty"):
        run(finished.run_dir)
    with pytest.raises(UserError, match="stage expert:head, epoch 1: the loss is"):
        run(tmp_path / "nan", ("stage1.optimizer=sgd", "stage1.lr=1e30", "stage1.warmup=0", "stage1.batch=2"))
    with pytest.raises(UserError, match="no usable clip in split train"):
        run(tmp_path / "none", data=replace(SMALL, splits={"val": SMALL.splits["val"]}))
    with pytest.raises(UserError, match="load them again"):
        run(tmp_path / "steps", ("t_len=8",))
    with pytest.raises(UserError, match=r"expert_classes.head"):
        run(tmp_path / "classes", ("expert_classes={head: [0, 12]}",))
    assert [p.name for p in tmp_path.iterdir()] == ["nan"]  # the others are refused before a folder is made


def test_from_a_real_cache(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    config = load_config("bmoe_tiny", ["stage1.epochs=1", "stage2.epochs=1", "tensorboard=true"])
    result = train(cache, "demo", config, tmp_path / "run")
    assert evaluate(result.run_dir, cache) == result.scores
    assert any((result.run_dir / "tensorboard").iterdir())
    info = json.loads((result.run_dir / "info.json").read_text())
    assert info["clips"]["train"]["quarantined"] == 1
    assert info["stages"] == load_features(cache, "demo", 4).keys


def test_patience_and_schedules() -> None:
    module = torch.nn.Linear(2, 1)
    seen: list[dict] = []
    config = TINY.stage2.model_copy(update={"epochs": 50, "patience": 3})

    def loss(index: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": module(torch.ones(len(index), 2)).square().mean()}

    values = iter([0.1, 0.5, *[0.5] * 50])
    fitted = fit(
        module, "s", config, clips=4, loss=loss, score=lambda: {"top1": next(values), "loss": 1.0},
        select="top1", seed=0, report=seen.append,
    )  # fmt: skip
    assert (fitted.best_epoch, fitted.epochs, len(seen)) == (2, 5, 5)
    still = TINY.stage2.model_copy(update={"epochs": 1, "lr": 1e-30, "batch": 2})

    def number(index: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": index.float().mean() + 0 * module.weight.sum()}

    fit(module, "s", still, clips=5, loss=number, score=None, select="top1", seed=0, report=seen.append)
    assert seen[-1]["loss"] == pytest.approx(2.0)  # the mean over the clips, though the last batch is smaller
    paper = load_config("bmoe_tiny", ["recipe=paper", "stage2.epochs=100"]).stage2
    assert [_factor(paper, e) for e in (0, 29.9, 30, 60)] == pytest.approx([1, 1, 0.1, 0.01])
    cosine = config.model_copy(update={"warmup": 2, "epochs": 12})
    assert [_factor(cosine, e) for e in (0, 2, 7, 12)] == pytest.approx([0.1 / 2.1, 1, 0.5, 0])


def test_predict_is_batch_independent(finished: RunResult) -> None:
    """Scores of a clip do not depend on the clips beside it."""
    data = SMALL
    model = spec.build(TINY, data.info(np.zeros((12, 300), np.float32)))
    model.load_state_dict(load_file(finished.run_dir / "best.safetensors"))
    whole, attention, loss = predict(model, data.splits["val"])
    alone = replace(
        data.splits["val"],
        clip_id=data.splits["val"].clip_id[:3],
        label=data.splits["val"].label[:3],
        tensors={k: v[:3] for k, v in data.splits["val"].tensors.items()},
    )
    np.testing.assert_allclose(predict(model, alone)[0], whole[:3], atol=1e-6)
    assert attention is not None
    picked = whole[np.arange(24), data.splits["val"].label.numpy()]
    assert loss == pytest.approx(-np.log(picked).mean(), rel=1e-4)
    assert math.isfinite(loss)
