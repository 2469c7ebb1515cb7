"""Every dataset has its page, and every code the tool can say stands in the table of codes."""

import re
from pathlib import Path

import pytest

from pipeline.datasets import described_datasets

ROOT = Path(__file__).resolve().parents[2]
DATASETS = [taxonomy for taxonomy in described_datasets() if taxonomy.name != "demo"]


@pytest.mark.parametrize("taxonomy", DATASETS, ids=lambda taxonomy: taxonomy.name)
def test_every_dataset_has_a_page(taxonomy) -> None:  # type: ignore[no-untyped-def]
    page = (ROOT / taxonomy.page).read_text()
    for part in ("**Get it**", "**Licence**", "**Tree", "## Known defects", "## Unconfirmed"):
        assert part in page, part
    assert re.search(rf"dataset import {taxonomy.name}\b", page)
    assert f"({taxonomy.page.removeprefix('docs/')})" in (ROOT / "docs/datasets.md").read_text()
    assert taxonomy.tree
    assert taxonomy.citation
    assert taxonomy.licence.url


def test_every_code_is_documented() -> None:
    sources = [ROOT / "pipeline/run/deep.py", ROOT / "pipeline/manifest.py", ROOT / "pipeline/jsonl.py"]
    sources += [ROOT / "heads/evaluate.py", ROOT / "heads/submit.py"]
    for folder in ("checks", "datasets", "skeletons"):
        sources += (ROOT / "pipeline" / folder).glob("*.py")
    sources += [ROOT / "pipeline/decode" / name for name in ("whole.py", "probe.py", "worker.py")]
    codes = {
        code for source in sources for code in re.findall(r"\b[EW]_[A-Z]+[A-Z_]*[A-Z]\b", source.read_text())
    }
    text = (ROOT / "docs/datasets.md").read_text()
    documented = set(re.findall(r"`([EW]_[A-Z_]+)`", text))
    assert len(codes) > 40
    assert codes <= documented, codes - documented


def test_no_restricted_list_is_in_the_repository() -> None:
    """Names and counts are facts; clip lists of others are not ours to carry."""
    sample = re.compile(r"S\d{3}C\d{3}P\d{3}R\d{3}A\d{3}|\d{4}_\d{2}_\d{4}\.mp4")
    for path in (ROOT / "manifests/datasets").glob("*.yaml"):
        assert len(sample.findall(path.read_text())) <= 2, path  # the example of the tree
