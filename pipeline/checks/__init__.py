"""The checks of a manifest, by level; `pipeline.validate` runs them and makes the report.

A check is a function from a manifest to the problems it has. Codes that begin with E_ are errors, W_ warnings.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.clip import Clip, shown
from pipeline.manifest import Manifest


@dataclass(frozen=True)
class Problem:
    """One line of a report; `level` is schema, table, file, hash, decode or profile."""

    code: str
    level: str
    message: str


# Of the warnings an import leaves, those of another level than schema.
IMPORTED = {
    "W_LABEL_PLACEHOLDER": "table",
    "W_DUP_ROW": "table",
    "W_SKEL_LISTED_MISSING": "table",
    "W_PROFILE_COUNT": "profile",
}

Check = Callable[[Manifest], Iterator[Problem]]
Row = tuple[int, Clip]  # 1-based row number in clip_id order, clip


def problem(
    manifest: Manifest,
    code: str,
    text: str,
    row: Row | None = None,
    *,
    level: str,
    got: object = None,
    want: object = None,
    fix: str = "",
) -> Problem:
    """A Problem in the common form, `CODE manifest:line clip_id: text (got ..., want ...) [fix: ...]`.

    manifest:line is the list or table the row came from, or the dataset and the row's number; None for `row`
    means the whole manifest. Without a fix, a warning points at the page of the dataset.
    """
    where = manifest.dataset
    if row:
        number, clip = row
        named = clip.source_file is not None and clip.source_line is not None
        line = f"{clip.source_file}:{clip.source_line}" if named else f"{manifest.dataset}:{number}"
        where = f"{line} {clip.clip_id}"
    if not fix and code.startswith("W_") and manifest.taxonomy.link:
        fix = f"see {manifest.taxonomy.link}"
    facts = [f"{word} {value}" for word, value in (("got", got), ("want", want)) if value is not None]
    tail = f" ({', '.join(facts)})" if facts else ""
    return Problem(code, level, shown(f"{code} {where}: {text}{tail}{f' [fix: {fix}]' if fix else ''}"))
