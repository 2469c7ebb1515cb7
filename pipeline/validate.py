"""Checks of a manifest before any GPU time is spent, and the report they make.

Levels: schema (one row, no I/O), table (labels, times, boxes, rows together), file (stat), profile (official counts).
Hashing and decoding is `pipeline.run.deep`. Nothing is changed. Every problem is one line,

    CODE manifest:line clip_id: text (got ..., want ...) [fix: ...]
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline.checks import Check, Problem, problem
from pipeline.checks.files import files
from pipeline.checks.rows import schema, table
from pipeline.checks.together import classes, counts, duplicates, leaks
from pipeline.manifest import Manifest

__all__ = ["CAP", "LEVELS", "Problem", "Report", "problem", "validate"]

CAP = 50  # problems listed per code; the rest is counted
LEVELS: dict[str, tuple[Check, ...]] = {
    "schema": (schema,),
    "table": (table, duplicates, leaks, classes),
    "file": (files,),
    "profile": (counts,),
}


@dataclass(frozen=True)
class Report:
    """Problems in the order found, at most CAP of a code, and how many there are of each code."""

    problems: tuple[Problem, ...]
    counts: dict[str, int]

    @property
    def errors(self) -> int:
        """Number of errors, unlisted ones included."""
        return sum(count for code, count in self.counts.items() if code.startswith("E_"))

    @property
    def warnings(self) -> int:
        """Number of warnings, unlisted ones included."""
        return sum(count for code, count in self.counts.items() if code.startswith("W_"))

    def lines(self) -> list[str]:
        """Messages, then one line for every code with more than CAP problems."""
        hidden = [f"{code}: {count - CAP} more" for code, count in self.counts.items() if count > CAP]
        return [*(problem.message for problem in self.problems), *hidden]


def validate(
    manifest: Manifest, extra: Iterable[Problem] = (), levels: Iterable[str] = tuple(LEVELS)
) -> Report:
    """Check a manifest; `extra` are problems found elsewhere (by hashing, decoding) that join the report."""
    listed: list[Problem] = []
    counts: Counter[str] = Counter()
    for one in _found(manifest, extra, levels):
        counts[one.code] += 1
        if counts[one.code] <= CAP:
            listed.append(one)
    return Report(tuple(listed), dict(counts))


def _found(manifest: Manifest, extra: Iterable[Problem], levels: Iterable[str]) -> Iterator[Problem]:
    for level in levels:
        for check in LEVELS[level]:
            yield from check(manifest)
    yield from extra
