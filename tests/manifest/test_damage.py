"""Whatever a manifest holds, validation reports it; nothing ends in a traceback."""

import contextlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.clip import COLUMNS, NOT_NULL, Clip
from pipeline.errors import UserError
from pipeline.jsonl import read_jsonl, write_jsonl
from pipeline.manifest import Manifest, read_manifest, write_manifest
from pipeline.taxonomy import load_taxonomy
from pipeline.validate import CAP, validate

LOADED = load_taxonomy("social_gesture")
assert LOADED is not None
TAXONOMY = LOADED
quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

number = st.integers(-3, 40)
corner = st.floats(width=32) | st.floats(0, 50)
words = ["train", "val", "social_gesture", "social4", "single", "rgb", "{}", "a.mp4"]
odd_text = st.text(max_size=6) | st.sampled_from(words)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "text": odd_text,
    "word": odd_text,
    **dict.fromkeys(("int16", "int32", "int64"), number),
    "float64": st.floats(),
    "ints": st.lists(number, max_size=3).map(tuple),
    "texts": st.lists(odd_text, max_size=3).map(tuple),
    "track": st.lists(st.tuples(number, corner, corner, corner, corner), max_size=3).map(tuple),
}


@st.composite
def odd_clips(draw: st.DrawFn) -> Clip:
    values: dict[str, Any] = {"clip_id": draw(odd_text), "dataset": draw(odd_text)}
    for field in draw(st.sets(st.sampled_from([field.name for field in fields(Clip)]), max_size=12)):
        strategy = VALUES[COLUMNS[field]]
        values[field] = draw(strategy if field in NOT_NULL else st.none() | strategy)
    return Clip(**values)


def manifest_of(root: Path, clips: list[Clip], warnings: tuple[str, ...] = ()) -> Manifest:
    return Manifest("social_gesture", root, TAXONOMY, tuple(clips), warnings)


@quick
@given(st.lists(odd_clips(), max_size=6), st.lists(st.text(max_size=9), max_size=2))
def test_any_clips_get_a_report(tmp_path: Path, clips: list[Clip], warnings: list[str]) -> None:
    report = validate(manifest_of(tmp_path, clips, tuple(warnings)))
    lines = report.lines()
    assert all(line.isprintable() for line in lines[len(warnings) :])
    assert len(report.problems) == sum(min(count, CAP) for count in report.counts.values())
    assert all(problem.message.startswith(problem.code) for problem in report.problems)


ROWS = [
    Clip(
        "social_gesture:train:a:0-30",
        "social_gesture",
        "a.mp4",
        start_frame=0,
        end_frame=30,
        label_ids=(0,),
        label_space="social4",
        label_kind="single",
        split="train",
        person_id="1",
        bbox_track=((0, 1.0, 2.0, 30.0, 40.0), (6, 1.0, 2.0, 30.0, 40.0)),
    ),
    Clip(
        "social_gesture:val:b",
        "social_gesture",
        "b.mp4",
        start_s=1.5,
        start_frame=45,
        fps_num=30,
        fps_den=1,
        extra='{"k":1}',
    ),
]


@quick
@given(st.data())
def test_damaged_jsonl(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "m.jsonl"
    write_jsonl(manifest_of(tmp_path, ROWS, ("W_CRLF a.txt: x",)), path)
    text = path.read_text()
    header = text.index("\n")
    start = data.draw(st.integers(0, len(text)) | st.integers(header, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 20)))
    odd = st.text(alphabet='0123456789,.:-+eE"[]{}\\ntrulfa é\0', max_size=6)
    path.write_text(text[:start] + data.draw(odd) + text[end:])
    with contextlib.suppress(UserError):  # anything else fails
        validate(read_jsonl(path))


def test_all_bad_lines_of_a_jsonl_are_in_one_error(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write_jsonl(manifest_of(tmp_path, ROWS), path)
    path.write_text(path.read_text() + "{\n" * 12)
    with pytest.raises(UserError) as caught:
        read_jsonl(path)
    assert f"{path}:4: not JSON" in str(caught.value)
    assert str(caught.value).endswith("(and 2 more lines)")


@quick
@given(st.integers(0, 10_000), st.integers(0, 255), st.booleans())
def test_damaged_parquet(tmp_path: Path, place: int, byte: int, cut: bool) -> None:
    path = tmp_path / "m.parquet"
    write_manifest(manifest_of(tmp_path, ROWS, ("W_CRLF a.txt: x",)), path)
    data = bytearray(path.read_bytes())
    place %= len(data)
    if cut:
        del data[place:]
    else:
        data[place] = byte
    path.write_bytes(data)
    with contextlib.suppress(UserError):  # anything else fails
        validate(read_manifest(path))
