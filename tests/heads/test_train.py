"""Training: it learns a planted signal, repeats to the byte, and writes a run that reloads."""

import csv
import json
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
from heads.loop import predict, probabilities
from heads.runs import epoch_line
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
        "config.json", "info.json", "metrics.jsonl", "glove.300d.txt", "best.safetensors", "last.safetensors",
        "predictions.npz", "confusion.csv", "result.json",
    }  # fmt: skip
    kept = {f"{name}-{key[:16]}.safetensors" for name, key in finished.experts.items()}
    assert {name.partition("-")[0] for name in kept} == set(REGIONS)
    assert kept <= {p.name for p in (folder.parent / "experts").iterdir()}
    words = label_vectors(["nodding"], folder / "glove.300d.txt")
    np.testing.assert_array_equal(words.vectors, label_vectors(["nodding"]).vectors)
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


def same_bytes(a: Path, b: Path) -> bool:
    names = ("metrics.jsonl", "best.safetensors", "last.safetensors", "predictions.npz", "confusion.csv")
    others = ("config.json", "info.json", "glove.300d.txt")
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in names + others)


def test_same_seed_same_bytes(finished: RunResult, tmp_path: Path) -> None:
    again = run(tmp_path / "b")
    assert same_bytes(again.run_dir, finished.run_dir)
    assert again.experts == finished.experts
    for name, key in again.experts.items():
        file = f"experts/{name}-{key[:16]}.safetensors"
        assert (tmp_path / file).read_bytes() == (finished.run_dir.parent / file).read_bytes()
    other = run(tmp_path / "c", seed=1)
    best = [folder / "best.safetensors" for folder in (other.run_dir, finished.run_dir)]
    assert best[0].read_bytes() != best[1].read_bytes()


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
    withheld = replace(SMALL, counts={**SMALL.counts, "test": {"used": 0, "unlabelled": 3}})
    with pytest.raises(UserError, match="E_EVAL_NO_LABELS the labels of all 3 clips of split test"):
        evaluate(finished.run_dir, tmp_path, "test", features=withheld)
    with pytest.raises(UserError, match=r"nope.safetensors: cannot be read"):
        evaluate(finished.run_dir, tmp_path, features=SMALL, checkpoint="nope")
    with pytest.raises(UserError, match=r"experts.body.in_proj.weight is"):
        evaluate(finished.run_dir, tmp_path, features=replace(SMALL, dim=64))


def test_experts_are_reused(finished: RunResult, tmp_path: Path) -> None:
    """A second run takes its experts from the folder and ends with the same bytes; so does every variant."""
    store = finished.run_dir.parent / "experts"
    told: list[dict] = []
    again = run(tmp_path / "again", experts=store, on_epoch=told.append)
    assert {record["stage"] for record in told} == {"fusion"}
    assert same_bytes(again.run_dir, finished.run_dir)  # the records of stage 1 too
    assert again.experts == finished.experts
    known = {p.name for p in store.iterdir()}
    for variant in ("drop_head", "semantic_only"):
        config = variant_config(TINY, variant)
        result = train(Path("x"), "demo", config, tmp_path / variant, features=SMALL, experts=store)
        assert result.experts.items() <= finished.experts.items()
        assert result.parameters < finished.parameters
    assert {p.name for p in store.iterdir()} == known
    for changed in ({"data": replace(SMALL, keys=SMALL.keys | {"semantic": "ab" * 32})}, {"seed": 7}):
        result = run(tmp_path / str(list(changed)), ("stage2.epochs=1",), experts=store, **changed)  # type: ignore[arg-type]
        assert not set(result.experts.values()) & set(finished.experts.values())
    result = run(tmp_path / "sgp", ("sgp.kernel=3", "stage2.epochs=1"), experts=store)
    assert not set(result.experts.values()) & set(finished.experts.values())


def trained_experts(result: RunResult) -> dict[str, dict[str, torch.Tensor]]:
    folder = result.run_dir.parent / "experts"
    return {n: load_file(folder / f"{n}-{key[:16]}.safetensors") for n, key in result.experts.items()}


def test_stage1_loss_by_hand(tmp_path: Path) -> None:
    """At a learning rate of nothing the record holds CE over the expert's classes and the mean squared
    error of the embedding, over the clips of those classes whose region is present.
    """
    data = synthetic(train=48, val=24, dim=32, motion_dim=24, steps=4, absent=0.3)
    still = ("stage1.lr=1e-30", "stage1.epochs=1", "stage1.batch=7", "stage2.epochs=0", "normalise=none")
    records: list[dict] = []
    result = run(tmp_path / "run", still, data=data, on_epoch=records.append)
    config = load_config("bmoe_tiny", still)
    vectors = torch.from_numpy(label_vectors([label.name for label in data.taxonomy.labels]).vectors)
    model = spec.build(config, data.info(vectors.numpy()))
    split = data.splits["train"]
    for region, state in trained_experts(result).items():
        classes = data.taxonomy.experts[region]
        expert = model.new_expert(region)
        expert.load_state_dict(state)
        inputs = expert.inputs(split.tensors)
        present = inputs["valid"].any(-1).tolist()
        chosen = [i for i, c in enumerate(split.label.tolist()) if c in classes and present[i]]
        assert 0 < len(chosen) < sum(c in classes for c in split.label.tolist())
        out = expert({name: tensor[chosen] for name, tensor in inputs.items()})
        local = torch.tensor([classes.index(c) for c in split.label[chosen].tolist()])
        record = next(r for r in records if r["stage"] == f"expert:{region}")
        assert record["ce"] == pytest.approx(F.cross_entropy(out["logits"], local).item(), rel=1e-4)
        emb = (out["embedding"] - vectors[split.label[chosen]]).square().mean().item()
        assert record["emb"] == pytest.approx(emb, rel=1e-4)
        assert record["loss"] == pytest.approx(record["ce"] + 50 * record["emb"], rel=1e-5)
    summed = run(tmp_path / "sum", (*still, "emb_reduction=sum"), data=data, experts=tmp_path / "other")
    lines = (summed.run_dir / "metrics.jsonl").read_text().splitlines()
    by_stage = {r["stage"]: r for r in map(json.loads, lines)}
    for record in records:
        assert by_stage[record["stage"]]["emb"] == pytest.approx(300 * record["emb"], rel=1e-4)


def test_stage1_starts_stage2(tmp_path: Path) -> None:
    """With no epoch of stage 2 the head holds exactly the best experts of stage 1."""
    records: list[dict] = []
    wild = ("stage1.epochs=6", "stage1.lr=0.1", "stage2.epochs=0")
    result = run(tmp_path / "run", wild, on_epoch=records.append)
    best = load_file(result.run_dir / "best.safetensors")
    for region, expert in trained_experts(result).items():
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
    assert result.experts == {}
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
    with pytest.raises(UserError, match=r"expert_classes.head: .* within 0..11"):
        run(tmp_path / "classes", ("expert_classes={head: [0, 12]}",))
    with pytest.raises(UserError, match="the data set has strict"):
        run(tmp_path / "classes", ("expert_classes=loose",))
    with pytest.raises(UserError, match="features of width 1408, the cache has 32"):
        run(tmp_path / "classes", ("d_in=1408",))
    with pytest.raises(
        UserError, match="no parameter begins with 'expert'; they begin with classifier, experts"
    ):
        run(tmp_path / "freeze", ("stage2.freeze=[expert]", "stage1.epochs=0"))
    with pytest.raises(UserError, match="select=map: scores of these labels are top1"):
        run(tmp_path / "select", ("select=map",))


def test_from_a_real_cache(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    config = load_config("bmoe_tiny", ["stage1.epochs=1", "stage2.epochs=1", "tensorboard=true"])
    result = train(cache, "demo", config, tmp_path / "run")
    assert evaluate(result.run_dir, cache) == result.scores
    assert any((result.run_dir / "tensorboard").iterdir())
    info = json.loads((result.run_dir / "info.json").read_text())
    assert info["clips"]["train"]["quarantined"] == 1
    assert info["stages"] == load_features(cache, "demo", 4).keys


def test_predict_is_batch_independent(finished: RunResult) -> None:
    """Scores of a clip do not depend on the clips beside it."""
    data = SMALL
    model = spec.build(TINY, data.info(np.zeros((12, 300), np.float32)))
    model.load_state_dict(load_file(finished.run_dir / "best.safetensors"))
    out = predict(model, data.splits["val"])
    alone = replace(
        data.splits["val"],
        clip_id=data.splits["val"].clip_id[:3],
        label=data.splits["val"].label[:3],
        tensors={k: v[:3] for k, v in data.splits["val"].tensors.items()},
    )
    torch.testing.assert_close(predict(model, alone)["logits"], out["logits"][:3], rtol=0, atol=1e-6)
    with np.load(finished.run_dir / "predictions.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["probabilities"], probabilities(out["logits"], multi=False))
        np.testing.assert_array_equal(arrays["attention"], out["attn"].numpy())
    value = F.cross_entropy(out["logits"], data.splits["val"].label).item()
    records = [json.loads(line) for line in (finished.run_dir / "metrics.jsonl").read_text().splitlines()]
    best = [r for r in records if r["stage"] == "fusion"][finished.best_epoch - 1]
    assert best["val_loss"] == pytest.approx(value, rel=1e-5)
