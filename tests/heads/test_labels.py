"""Label vectors: the word rules with a toy vocabulary, GloVe files, the seeded table."""

import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from heads.labels import label_vectors, seeded_vector, words_of
from pipeline.errors import UserError
from pipeline.taxonomy import load_taxonomy

AKIMBO = {"arms akimbo": ("akimbo",)}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("scratching or touching neck", "scratching touching neck"),
        ("LeanTowardsLeft", "lean towards left"),
        ("handInHair", "hand in hair"),
        ("TVRemote", "tv remote"),
        ("hand-to_face/ear", "hand to face ear"),
        ("  Nodding, (slowly)! ", "nodding slowly"),
        ("Arms Akimbo", "akimbo"),
        ("orbit", "orbit"),
    ],
)
def test_words(name: str, words: str) -> None:
    assert words_of(name, overrides=AKIMBO) == tuple(words.split())


def toy(path: Path, width: int = 300) -> dict[str, np.ndarray]:
    words = "scratching touching neck sitting akimbo the"
    rng = np.random.default_rng(0)
    table = {w: rng.normal(size=width).astype(np.float32).round(4) for w in words.split()}
    lines = [f"{w} {' '.join(f'{v:.4f}' for v in row)}" for w, row in table.items()]
    path.write_text("\n".join(lines) + "\n")
    return table


NAMES = ("scratching or touching neck", "sitting straightly", "arms akimbo", "zzz")


def test_rules_on_a_toy_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "glove.6B.300d.txt"
    v = toy(path)
    found = label_vectors(NAMES, path, overrides=AKIMBO)
    expected = [
        (v["scratching"] + v["touching"] + v["neck"]) / 3,
        v["sitting"] / 2,
        v["akimbo"],
        0 * v["the"],
    ]
    np.testing.assert_allclose(found.vectors, expected, rtol=1e-5, atol=1e-6)
    assert found.vectors.dtype == np.float32
    assert found.oov == ("straightly", "zzz")
    assert found.source == f"glove: {path} sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
    skipped = label_vectors(NAMES, path, oov="skip", overrides=AKIMBO).vectors
    np.testing.assert_allclose(skipped[1], v["sitting"], rtol=1e-5)
    assert not skipped[3].any()
    kept = label_vectors(("neck or neck",), path, drop_words=())
    np.testing.assert_allclose(kept.vectors[0], v["neck"] * 2 / 3, rtol=1e-5)


def test_zip(tmp_path: Path) -> None:
    text, other, archive = tmp_path / "g.300d.txt", tmp_path / "g.50d.txt", tmp_path / "glove.zip"
    toy(text)
    toy(other, width=50)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(other, "g.50d.txt")
        file.write(text, "g.300d.txt")
    from_zip = label_vectors(NAMES, archive, overrides=AKIMBO).vectors
    np.testing.assert_array_equal(from_zip, label_vectors(NAMES, text, overrides=AKIMBO).vectors)


def test_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "g.txt"
    with pytest.raises(UserError, match="cannot be read"):
        label_vectors(NAMES, path)
    toy(path, width=50)
    with pytest.raises(UserError, match="line 1: 50 numbers, 300 are needed"):
        label_vectors(NAMES, path)
    toy(path)
    path.write_text(path.read_text() + "zzz " + "x " * 300 + "\n")
    with pytest.raises(UserError, match="line 7: not a word and numbers"):
        label_vectors(NAMES, path)
    path.write_text("zzz " + "nan " * 300 + "\n")
    with pytest.raises(UserError, match="not finite"):
        label_vectors(NAMES, path)
    archive = tmp_path / "g.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.300d.txt", "")
        file.writestr("b.300d.txt", "")
    with pytest.raises(UserError, match="exactly one"):
        label_vectors(NAMES, archive)


def test_seeded_table() -> None:
    found = label_vectors(("nodding", "shaking head", "shaking legs"))
    assert "seeded table" in found.source
    assert found.oov == ()
    np.testing.assert_allclose(
        found.vectors[1], (seeded_vector("shaking") + seeded_vector("head")) / 2, rtol=1e-5
    )
    word = seeded_vector("nodding")
    assert word.std() == pytest.approx(0.28, rel=0.15)
    assert word[:2].tolist() == pytest.approx([-0.1248122454, -0.0710594803], rel=1e-6)  # on every machine
    shared = float(np.corrcoef(found.vectors[1], found.vectors[2])[0, 1])
    assert shared > 0.3  # a shared word makes classes alike


@pytest.mark.skipif(
    "BMOE_GLOVE" not in os.environ, reason="needs glove.6B.300d: BMOE_GLOVE=its text file or zip"
)
def test_ma52_from_glove() -> None:
    """The table the authors use: norms of its rows, what is out of vocabulary, and how alike the classes are."""
    taxonomy = load_taxonomy("ma52")
    assert taxonomy is not None
    names = [label.name for label in taxonomy.labels]
    found = label_vectors(names, Path(os.environ["BMOE_GLOVE"]), overrides=AKIMBO)
    rows = dict(zip(names, found.vectors, strict=True))
    norms = {"nodding": 6.510, "shrugging": 5.758, "waving": 6.885, "tiptoe": 6.294, "arms akimbo": 6.673}
    for name, norm in (norms | {"sitting straightly": 2.824}).items():
        assert np.linalg.norm(rows[name]) == pytest.approx(norm, abs=1e-3), name
    assert "straightly" in found.oov
    assert np.square(found.vectors).mean() == pytest.approx(0.0785, abs=1e-3)
    unit = found.vectors / np.linalg.norm(found.vectors, axis=1, keepdims=True)
    alike = unit @ unit.T - np.eye(52)
    assert alike.max() == pytest.approx(0.907, abs=1e-3)
    assert alike[32, 33] == alike.max()
    assert alike.sum() / (52 * 51) == pytest.approx(0.36, abs=0.01)
