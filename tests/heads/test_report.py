"""The report page: whole, escaped, without the network, and as a browser shows it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import cli
from heads import runs
from heads.config import load_config, variant_config
from heads.report import write_report
from heads.train import RunPlan, train, train_group
from pipeline.errors import UserError
from tests.heads.synthetic import synthetic

DATA = synthetic(train=48, val=24, dim=32, motion_dim=24, steps=4)
HOSTILE = "<script>document.title='hit'</script>&\"'"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of one head and one run without its motion stream; a class and a clip with hostile names."""
    root = tmp_path_factory.mktemp("report")
    config = load_config("bmoe_tiny", ["stage1.epochs=2", "stage2.epochs=3"])
    train_group(
        Path("x"), "demo", [RunPlan(root / f"full-seed{s}", config, s) for s in (0, 1)], features=DATA
    )
    alone = variant_config(config, "semantic_only")
    train(Path("x"), "demo", alone, root / "semantic_only-seed0", variant="semantic_only", features=DATA)
    for run in root.glob("*-seed*"):
        info = json.loads((run / "info.json").read_text())
        info["classes"][0] = HOSTILE
        runs.write_json(run / "info.json", info)
        found = runs.read_predictions(run)
        ids = (HOSTILE, *found.clip_id[1:])
        runs.write_predictions(
            run, ids, found.label, found.probabilities, found.attention, names=tuple(info["classes"])
        )
    return root


class Elements(HTMLParser):
    """Start tags with their attributes, and the text of every table cell."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag in ("td", "th")
        if self.inside:
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells[-1] += data


def report(folder: Path, out: Path, *words: str) -> tuple[int, str, str]:
    jobs = [str(folder / "full"), str(folder / "semantic_only-seed0")]
    found = CliRunner().invoke(cli.app, ["report", *jobs, "--out", str(out), "--json", *words])
    return found.exit_code, found.stdout, found.stderr


def test_page(folder: Path, tmp_path: Path) -> None:
    """It says what the runs say, loads nothing, and shows hostile names as text."""
    status, out, _ = report(folder, tmp_path / "r.html")
    record = json.loads(out)
    assert (status, record["runs"], record["configs"], record["pictures"]) == (0, 3, 2, 0)
    page = (tmp_path / "r.html").read_text()
    elements = Elements(page)
    tags = [tag for tag, _ in elements.tags]
    assert not {"script", "link", "iframe", "object"} & set(tags)
    loads = [(name, value) for _, attrs in elements.tags for name, value in attrs.items()]
    assert not [v for name, v in loads if name in ("src", "href", "srcset") and not v.startswith("data:")]
    assert not re.search(r"url\(|@import", page)
    assert "default-src 'none'" in page
    assert HOSTILE in elements.cells
    info = json.loads((folder / "full-seed0" / "info.json").read_text())
    assert all(key in page for key in info["stages"].values())
    results = [json.loads((folder / f"full-seed{s}" / "result.json").read_text()) for s in (0, 1)]
    top1 = [100 * r["scores"]["top1"] for r in results]
    assert f"{np.mean(top1):.2f} ± {np.std(top1, ddof=1):.2f}" in [cell.strip() for cell in elements.cells]
    assert "64.54, 53.30 (ma52)" in page
    assert "59.31, 47.82 (ma52)" in page
    charts = [attrs for tag, attrs in elements.tags if tag == "polyline"]
    assert len(charts) == 2 * (5 * 4) + 5 * 4  # runs x stages x (loss, val loss, top-1, F1)
    found = [runs.read_predictions(folder / f"full-seed{s}") for s in (0, 1)]
    mean = np.mean([p.probabilities for p in found], 0)[np.arange(24), found[0].label]
    assert record["worst"] == [found[0].clip_id[i] for i in np.argsort(mean, kind="stable")[:6]]
    confusion = sum((p.probabilities.argmax(1) == p.label).sum() for p in found)
    counts = elements.cells[-(13 * 12) :]
    assert sum(int(counts[13 * i + i + 1] or 0) for i in range(12)) == confusion


def test_several_labels_have_no_confusion(tmp_path: Path) -> None:
    from tests.heads.test_heads import several_labels

    config = load_config("bmoe_tiny", ["stage1.epochs=1", "stage2.epochs=1"])
    result = train(Path("x"), "demo", config, tmp_path / "run", features=several_labels())
    record = write_report([result.run_dir], tmp_path / "r.html")
    assert len(record["worst"]) == 6
    page = (tmp_path / "r.html").read_text()
    assert "Confusion" not in page
    assert "val_map" in page


def test_pictures_and_what_is_missing(folder: Path, tmp_path: Path) -> None:
    """Pictures are inside the page; without the videos the report says so and is written all the same."""
    Image.new("RGB", (3000, 100), "red").save(tmp_path / "p.png")
    chosen = [folder / "full-seed0"]
    record = write_report(chosen, tmp_path / "r.html", previews=lambda ids: {ids[0]: tmp_path / "p.png"})
    assert record["pictures"] == 1
    assert (tmp_path / "r.html").read_text().count('src="data:image/jpeg;base64,') == 1

    def gone(ids: object) -> dict[str, Path]:
        raise UserError("the videos are not there")

    write_report(chosen, tmp_path / "s.html", previews=gone)
    assert "the videos are not there" in (tmp_path / "s.html").read_text()


def test_refuses(folder: Path, tmp_path: Path) -> None:
    missing = CliRunner().invoke(cli.app, ["report", str(folder / "ful")])
    assert (missing.exit_code, "no run folder, and no ful-seed0" in missing.stderr) == (2, True)
    copy = tmp_path / "full-seed0"
    shutil.copytree(folder / "full-seed0", copy)
    lines = (copy / "metrics.jsonl").read_text()
    (copy / "metrics.jsonl").write_text(lines + "7\n")
    with pytest.raises(UserError, match=r"line \d+: no record of an epoch"):
        write_report([copy], tmp_path / "r.html")
    (copy / "result.json").unlink()
    with pytest.raises(UserError, match=r"result\.json: cannot be read .* finish the run first"):
        write_report([copy], tmp_path / "r.html")
    other = json.loads((copy / "info.json").read_text()) | {"dataset": "other"}
    (copy / "info.json").write_text(json.dumps(other))
    shutil.copy(folder / "full-seed0" / "result.json", copy)
    (copy / "metrics.jsonl").write_text(lines)
    with pytest.raises(UserError, match="a run on other, the first is on demo"):
        write_report([folder / "full-seed0", copy], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, e.g. apt-get install chromium")
def test_a_browser_shows_it(folder: Path, tmp_path: Path) -> None:
    """Headless Chromium draws the page: text, a heat map in its colours, and no script ran."""
    assert report(folder, tmp_path / "r.html")[0] == 0
    shot = tmp_path / "r.png"
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1240,3200", "--hide-scrollbars", f"--screenshot={shot}", (tmp_path / "r.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape == (3200, 1240, 3)
    dark = (np.abs(pixels.astype(int) - (8, 62, 124)).max(2) < 3).mean()
    assert dark > 1e-4  # the darkest cells of the heat maps
    inked = (pixels < 250).any(2).mean()
    assert 0.02 < inked < 0.9
