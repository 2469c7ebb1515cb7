"""What every adapter works with: the user's folder, the options of the dataset, and one place for complaints."""

import csv
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.clip import path_problem, shown
from pipeline.errors import UserError
from pipeline.taxonomy import Taxonomy

# Keyword arguments of Clip. The adapter sets video_path or skeleton_path and what it knows, labels as label_ids or
# label_names (if both, they must agree). The import adds dataset, coarse ids, label space, licence and clip_id.
Row = dict[str, Any]

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg")
LABEL_FILES = ("label_name.txt", "labels.txt")
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LISTED = 10  # refused lines named in the error; the rest is counted

_SIGNED = re.compile(r"-?[0-9]{1,9}")
_WHOLE = re.compile(r"[0-9]{1,9}")
_ODD = re.compile(r"//|/\.|^\.|/$|\\|\0|^/|^[A-Za-z]:")  # anything a canonical relative path has not


class Source:
    """The folder an adapter reads.

    Attributes:
        name: of the dataset that is imported.
        root: the user's folder, absolute; every path of a row is relative to it.
        options: those of the dataset's YAML with the user's --set over them.
        taxonomy: what is known of the labels, or None (then the rows define them).
        warnings: "CODE place: text" of what is odd but usable.
    """

    def __init__(self, name: str, root: Path, options: Mapping[str, Any], taxonomy: Taxonomy | None) -> None:
        self.name = name
        self.root = root
        self.options = options
        self.taxonomy = taxonomy
        self.warnings: list[str] = []
        self._refused: list[str] = []
        self._refusals = 0

    # ---- complaints

    def warn(self, code: str, where: str, text: str) -> None:
        """Note a W_ problem; it stays with the manifest and `validate` repeats it."""
        link = self.taxonomy.link if self.taxonomy else ""
        self.warnings.append(shown(f"{code} {where}: {text}{f' [fix: see {link}]' if link else ''}"))

    def refuse(self, where: str, reason: object) -> None:
        """Note that a line or file cannot become a row; the import ends with one error that names them all."""
        self._refusals += 1
        if self._refusals <= LISTED:
            self._refused.append(shown(f"{where}: {reason}"))

    def check(self, remedy: str) -> None:
        """Raise UserError if anything was refused."""
        if self._refused:
            hidden = self._refusals - len(self._refused)
            more = f" (and {hidden} more)" if hidden else ""
            raise UserError(f"{'; '.join(self._refused)}{more}. Remedy: {remedy}")

    def lost(self, what: str) -> UserError:
        """The error for a root that lacks what the dataset needs."""
        known = self.taxonomy
        if known is None or not known.link:
            return UserError(f"{self.root}: {what}")
        return UserError(
            f"{self.root}: {what}; `bmoe-cache dataset show {known.name}` prints the tree; see {known.link}"
        )

    # ---- options

    def rate(self, option: str) -> Fraction:
        """An option that must be a number above 0, such as frames per second. Raises UserError."""
        value = self.options.get(option)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            raise UserError(f"option {option} is {value!r}, want a number; give it with --set {option}=25")
        return Fraction(str(value))

    def pair(self, option: str) -> tuple[int, int]:
        """An option that must be a size: two whole numbers from 1. Raises UserError."""
        value = self.options.get(option)
        if (
            not isinstance(value, list)
            or len(value) != 2
            or not all(isinstance(one, int) and one > 0 for one in value)
        ):
            raise UserError(f"option {option} is {value!r}, want [width, height]")
        return value[0], value[1]

    def choice(self, option: str, among: Sequence[object]) -> Any:
        """An option that must be one of several values. Raises UserError."""
        value = self.options.get(option)
        if value not in among:
            names = ", ".join(map(str, among))
            raise UserError(
                f"option {option} is {value!r}, want one of {names}; give it with --set {option}="
            )
        return value

    def text(self, value: object, option: str) -> str:
        """A part of an option that must be text. Raises UserError."""
        if not isinstance(value, str) or not value:
            raise UserError(f"option {option} is {value!r}, want text; give it with --set {option}=TEXT")
        return value

    # ---- files

    def path(self, text: str) -> Path:
        """A file or folder an option names. Raises UserError for a path that leaves the root, links included."""
        try:
            found = self.root / relative_path(text)
        except ValueError as error:
            raise UserError(f"{self.root}: {error}") from None
        if not found.resolve().is_relative_to(self.root.resolve()):
            raise UserError(
                f"{found}: E_PATH_ESCAPE this link leads outside {self.root}; move the files there or give a "
                "--root that holds all of them"
            )
        return found

    def listed(self, folder: str, *suffixes: str) -> list[Path]:
        """Files of a folder with these suffixes (any case), sorted; hidden ones are skipped, errors as `path`."""
        place = self.path(folder)
        entries = sorted(place.iterdir()) if place.is_dir() else []
        names = [entry.name for entry in entries if entry.suffix.lower() in suffixes and entry.is_file()]
        return [self.path(f"{folder}/{name}") for name in names if not name.startswith(".")]

    def shown_path(self, path: Path) -> str:
        """The path relative to the root, as rows and messages have it."""
        return path.relative_to(self.root).as_posix()

    def files(self, *suffixes: str) -> Iterator[str]:
        """Relative paths below the root with these suffixes (any case), in no particular order.

        Hidden files and folders are skipped. Links to files inside the root count as files, links to folders
        inside the root are not followed (their files are found where they are); a link out is a UserError.
        """
        real_root = os.path.realpath(self.root)
        stack = [""]
        while stack:
            folder = stack.pop()
            with os.scandir(os.path.join(real_root, folder)) as entries:  # noqa: PTH118  Path costs 5 times the walk
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    wanted = entry.name.lower().endswith(suffixes)
                    if entry.name.startswith("."):
                        continue
                    if entry.is_symlink() and (wanted or entry.is_dir()):
                        _refuse_outside(path, entry.path, real_root)
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(path)
                    elif wanted and (entry.is_file() or (entry.is_symlink() and not entry.is_dir())):
                        _refuse_odd(path, self.root)
                        yield path

    def lines(self, path: Path) -> Iterator[tuple[int, str]]:
        """(line number, line) of a text file: UTF-8 with or without BOM, LF or CRLF (W_CRLF); no blank lines.

        Raises UserError for other encodings.
        """
        text = read_text(path)
        if "\r" in text:
            self.warn("W_CRLF", self.shown_path(path), "lines end with CRLF; read as if they ended with LF")
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        for number, line in enumerate(text.split("\n"), 1):
            if stripped := line.strip():
                yield number, stripped

    def table(self, path: Path, required: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
        """(line number, column -> cell) of a CSV file: RFC 4180, header required; empty cells are left out.

        Raises UserError for a header that lacks a required column ("a|b": either); lines that do not fit it are
        refused.
        """
        name = self.shown_path(path)
        lines = _csv_lines(path)
        header = _header(next(lines, (1, []))[1], name, required)
        for number, cells in lines:
            if not any(cells):
                continue
            if len(cells) != len(header):
                fields = f"{len(cells)} fields, want {len(header)} as in the header"
                self.refuse(f"{name}:{number}", fields)
                continue
            yield number, {column: cell for column, cell in zip(header, cells, strict=True) if cell}

    def header(self, path: Path) -> list[str]:
        """The column names of a CSV file."""
        return next(_csv_lines(path), (1, list[str]()))[1]

    def numbers(self, path: Path, least: int) -> Iterator[tuple[int, list[int]]]:
        """(line number, whole numbers) of a file of numbers between commas, at least so many a line.

        A first line that holds no number is a header and is skipped; other lines are refused.
        """
        for number, line in self.lines(path):
            cells = [cell.strip() for cell in line.split(",")]
            if len(cells) >= least and all(_WHOLE.fullmatch(cell) for cell in cells):
                yield number, [int(cell) for cell in cells]
            elif number > 1 or any(_WHOLE.fullmatch(cell) for cell in cells):
                want = f"want {least} whole numbers between commas"
                self.refuse(f"{self.shown_path(path)}:{number}", f"{line[:60]!r}, {want}")

    def triples(self, path: Path) -> Iterator[tuple[int, tuple[int, int, int]]]:
        """(line number, (label, first, last)) of a label file; lines whose last is before the first are refused."""
        for number, (label, first, last, *_) in self.numbers(path, 3):
            if last < first:
                said = f"E_END_BEFORE_START frames {first} to {last}"
                self.refuse(f"{self.shown_path(path)}:{number}", said)
            else:
                yield number, (label, first, last)


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells without blanks around) of every line; UserError for what is no CSV."""
    # strict refuses quotes that are never closed; the lines keep their ends, for cells that hold several
    reader = csv.reader((line + "\n" for line in read_text(path).split("\n")), strict=True)
    try:
        for cells in reader:
            yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV ({error}); correct the quotes") from None


def _header(header: list[str], name: str, required: Sequence[str]) -> list[str]:
    twice = sorted({cell for cell in header if header.count(cell) > 1})
    missing = [column for column in required if not set(column.split("|")) & set(header)]
    if missing:
        got = shown(", ".join(header))[:100] or "nothing"
        other = "; these look separated by semicolons: save the table with commas" if ";" in got else ""
        raise UserError(
            f"{name}:1: E_SCHEMA_MISSING_COLUMN {', '.join(missing)} (got {got}); the first line names the columns, "
            f"with commas between them{other}"
        )
    if twice:
        raise UserError(f"{name}:1: column {shown(twice[0])!r} is there twice; rename one")
    return header


def read_text(path: Path) -> str:
    """Text of a UTF-8 file without its BOM. Raises UserError for other encodings."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: E_ENCODING not UTF-8 (byte {error.start}); save it as UTF-8") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError."""
    try:
        data = json.loads(read_text(path))
        json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair can be written, but is no text
    except (ValueError, RecursionError) as error:
        reason = shown(" ".join(str(error).split()))[:100]
        raise UserError(f"{path}: not JSON ({reason}); restore the file") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: want a JSON object; restore the file")
    return data


def read_labels(path: Path) -> list[str]:
    """Label names in id order from lines `name` or `id name` (ids 0, 1, 2, ...), '#' comments apart."""
    lines = [line.strip() for line in read_text(path).split("\n")]
    lines = [line for line in lines if line and not line.startswith("#")]
    numbered = [re.fullmatch(r"([0-9]{1,9})[\s,]+(.*\S)", line) for line in lines]
    if not lines or not all(numbered):
        return lines
    pairs = sorted((int(match[1]), match[2]) for match in numbered if match)
    if [number for number, _ in pairs] != list(range(len(pairs))):
        raise UserError(
            f"{path}: label ids must run 0, 1, 2, ...; the file has {len(pairs)} ids from {pairs[0][0]}"
        )
    return [name for _, name in pairs]


def split_of(name: str) -> str:
    """Split named by a word of a file or folder name (`train_list_videos` -> train), else unsplit."""
    return next((SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS), "unsplit")


def relative_path(text: str) -> str:
    """A path of a list or table in canonical form ('./a//b' -> 'a/b'); ValueError unless it is safe."""
    if text and not _ODD.search(text):
        return text
    problem = path_problem(text)
    if problem:
        raise ValueError(f"{problem[0]} {shown(text)!r}: {problem[1]}, want a path relative to the root")
    return str(PurePosixPath(text))


def whole(text: str, name: str, least: int = 0) -> int:
    """A whole number from a cell; ValueError otherwise."""
    if not _SIGNED.fullmatch(text) or (number := int(text)) < least:
        raise ValueError(f"{name} {shown(text)!r}, want a whole number from {least} to 999999999")
    return number


def seconds(text: str, name: str) -> float:
    """Seconds (or milliseconds) from a cell, 0 or more; ValueError otherwise."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,20})?", text):
        raise ValueError(f"{name} {shown(text)!r}, want a decimal number such as 12.5")
    return float(text)


def is_time(value: Any) -> bool:
    """Whether a JSON value is a number of seconds, 0 or more."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e7


def frames_between(start: float | None, end: float | None, fps: Fraction) -> tuple[int | None, int | None]:
    """The half-open frames that seconds touch: floor of the start, ceiling of the end, None stays None.

    Exact in the decimals as written: 1.1 s at 30 fps end with frame 33, where floats would say 34.
    """
    first = None if start is None else math.floor(Fraction(repr(start)) * fps)
    return first, None if end is None else math.ceil(Fraction(repr(end)) * fps)


def _refuse_outside(path: str, link: str, real_root: str) -> None:
    if os.path.commonpath((os.path.realpath(link), real_root)) != real_root:
        raise UserError(
            f"{shown(path)}: E_PATH_ESCAPE this link leads outside {real_root}; copy the files in"
        )


def _refuse_odd(path: str, root: Path) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{root}: the file name {shown(path)} is not UTF-8; rename it") from None
    if "\\" in path:
        raise UserError(f"{root}: the file name {shown(path)} holds a backslash; rename it")
