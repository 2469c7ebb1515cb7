"""Label vectors: one 300-d vector per class, the mean of the word vectors of its name (B-MoE section 3.4).

The rules reproduce the table the authors use for MA-52, which is made from glove.6B.300d: lower case, "or"
dropped, an unknown word counts in the mean as a zero vector, and "arms akimbo" is the vector of "akimbo"
alone.
"""

import hashlib
import io
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from pipeline.errors import UserError

WIDTH = 300
STD = 0.28  # of an entry of the MA-52 table, whose mean square is 0.0785
MAX_LINE = 1 << 16  # bytes; a line of glove.840B.300d has about 3,000


@dataclass(frozen=True)
class LabelVectors:
    """vectors float32 [C, 300]; words, the rows they were made of; source, a line for the run's record; oov, the
    words without a vector.
    """

    vectors: np.ndarray
    words: dict[str, np.ndarray]
    source: str
    oov: tuple[str, ...]

    def write(self, path: Path) -> None:
        """The words as a GloVe text file: all a run needs of a file of 400,000."""
        lines = (f"{word} {' '.join(map(str, row.tolist()))}\n" for word, row in sorted(self.words.items()))
        path.write_text("".join(lines), encoding="utf-8")


def words_of(
    name: str, drop_words: Collection[str] = ("or",), overrides: Mapping[str, Sequence[str]] | None = None
) -> tuple[str, ...]:
    """Words of a class name: camelCase, hyphen, underscore and slash split; punctuation gone; lower case.

    >>> words_of("playing or tidyingHair")
    ('playing', 'tidying', 'hair')
    """
    if overrides and name.lower() in overrides:
        return tuple(overrides[name.lower()])
    text = re.sub(r"[-_/]", " ", name)
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text)
    return tuple(w for w in re.sub(r"[^\w\s]", "", text).lower().split() if w not in drop_words)


def label_vectors(
    names: Sequence[str],
    glove: Path | None = None,
    *,
    drop_words: Collection[str] = ("or",),
    oov: str = "zero_counted",
    overrides: Mapping[str, Sequence[str]] | None = None,
) -> LabelVectors:
    """Vectors of the classes, from a GloVe file or, without one, from the seeded table.

    Args:
        names: class names.
        glove: text file ("word 0.1 0.2 ...", 300 numbers) or a zip holding one *300d.txt.
        drop_words: words that never count.
        oov: "zero_counted" (an unknown word is a zero vector) or "skip" (it is left out of the mean).
        overrides: class name in lower case -> the words to use.

    Raises:
        UserError: the file is missing, no GloVe file of 300 numbers, or broken.
    """
    words = [words_of(name, drop_words, overrides) for name in names]
    wanted = {w for row in words for w in row}
    if glove is None:
        table = {w: seeded_vector(w) for w in wanted}
        source = "seeded table (SHA-256 of the word; carries no meaning)"
    else:
        table, digest = read_glove(glove, wanted)
        source = f"glove: {glove} sha256 {digest}"
    vectors = np.zeros((len(names), WIDTH), np.float32)
    for row, row_words in enumerate(words):
        found = [table[w] for w in row_words if w in table]
        count = len(row_words) if oov == "zero_counted" else len(found)
        if found:
            vectors[row] = np.sum(found, axis=0, dtype=np.float64) / count
    return LabelVectors(vectors, table, source, tuple(sorted(wanted - table.keys())))


def seeded_vector(word: str) -> np.ndarray:
    """Float32 [300] drawn from N(0, 0.28) with the word's SHA-256 as the seed."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest(), "little")
    return np.random.default_rng(seed).normal(0.0, STD, WIDTH).astype(np.float32)


def read_glove(path: Path, wanted: Collection[str]) -> tuple[dict[str, np.ndarray], str]:
    """Rows of the wanted words (float32 [300] each) and the SHA-256 of the file; nothing else is kept.

    Raises:
        UserError: as `label_vectors`.
    """
    needles = {w.encode(): w for w in wanted}
    rows: dict[str, np.ndarray] = {}
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with _lines(path) as lines:
            number = 0
            while line := lines.readline(MAX_LINE):
                number += 1
                word, _, numbers = line.partition(b" ")
                if number == 1 or word in needles:
                    vector = _vector(numbers, path, number)
                    if word in needles:
                        rows.setdefault(needles[word], vector)
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a GloVe text file or zip") from None
    return rows, digest


@contextmanager
def _lines(path: Path) -> Iterator[IO[bytes]]:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.namelist() if m.endswith(".txt")]
        members = [m for m in members if "300d" in m] or members
        if len(members) != 1:
            raise UserError(f"{path}: needs exactly one *300d.txt inside, found {members or 'none'}")
        with archive.open(members[0]) as file:
            yield io.BufferedReader(file)  # type: ignore[type-var]  # ZipExtFile is a raw enough stream


def _vector(numbers: bytes, path: Path, line: int) -> np.ndarray:
    try:
        vector = np.array(numbers.split(), dtype=np.float32)
    except ValueError:
        raise UserError(
            f"{path}, line {line}: not a word and numbers; give a GloVe text file or zip"
        ) from None
    if vector.shape != (WIDTH,):
        raise UserError(f"{path}, line {line}: {vector.size} numbers, {WIDTH} are needed; use the 300d file")
    if not np.isfinite(vector).all():
        raise UserError(f"{path}, line {line}: a number is not finite; fetch the file again")
    return vector
