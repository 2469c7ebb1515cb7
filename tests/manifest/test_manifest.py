"""Round trips, damage, atomic writes, content addresses and path safety of the manifest."""

import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pipeline.errors import ClipError, UserError
from pipeline.jsonl import read_jsonl, write_jsonl
from pipeline.manifest import (
    COLUMNS,
    Clip,
    Manifest,
    clip_key,
    manifest_path,
    read_manifest,
    resolve,
    write_manifest,
)
from pipeline.spec import digest
from pipeline.taxonomy import from_labels, load_taxonomy

SHA = hashlib.sha256(b"video").hexdigest()
TAXONOMY = from_labels("tiny", ["nod", "wave"])

text = st.text(max_size=12)
int64 = st.integers(-(2**63), 2**63 - 1)
int32 = st.integers(-(2**31), 2**31 - 1)
STRATEGIES = {
    "text": text,
    "word": text,
    "int16": st.integers(-(2**15), 2**15 - 1),
    "int32": int32,
    "int64": int64,
    "float64": st.floats(allow_nan=False, allow_infinity=False),
    "ints": st.lists(int32, max_size=3).map(tuple),
    "texts": st.lists(text, max_size=3).map(tuple),
    "track": st.lists(
        st.tuples(int64, *[st.floats(allow_nan=False, allow_infinity=False)] * 4), max_size=3
    ).map(tuple),
}


@st.composite
def clips(draw: st.DrawFn) -> Clip:
    values: dict[str, Any] = {}
    for field in fields(Clip):
        strategy = STRATEGIES[COLUMNS[field.name]]
        values[field.name] = draw(st.none() | strategy if field.default is None else strategy)
    for side in ("start", "end"):  # seconds always come with a frame
        if values[f"{side}_frame"] is None:
            values[f"{side}_s"] = None
    return Clip(**values)


manifests = st.lists(clips(), max_size=5, unique_by=lambda clip: clip.clip_id).map(
    lambda rows: Manifest("tiny", Path("/videos/ü"), TAXONOMY, tuple(rows))
)
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tiny(*rows: Clip) -> Manifest:
    return Manifest("tiny", Path("/videos"), TAXONOMY, rows)


def clip(clip_id: str = "tiny:train:a", **values: Any) -> Clip:
    return replace(Clip(clip_id, "tiny", "a.mp4"), **values)


@quick
@given(manifests)
def test_parquet_keeps_everything(tmp_path: Path, manifest: Manifest) -> None:
    path = tmp_path / "m.parquet"
    write_manifest(manifest, path)
    again = read_manifest(path)
    assert again == manifest
    assert again.digest == manifest.digest
    for one in again.clips:  # Python values, not numpy's: they go into JSON
        json.dumps([getattr(one, field.name) for field in fields(Clip)])


@quick
@given(manifests)
def test_jsonl_keeps_everything(tmp_path: Path, manifest: Manifest) -> None:
    path = tmp_path / "m.jsonl"
    write_jsonl(manifest, path)
    assert read_jsonl(path) == manifest


def test_columns_have_the_declared_types(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write_manifest(tiny(clip()), tmp_path / "m.parquet")
    schema = pq.read_schema(tmp_path / "m.parquet")
    assert str(schema.field("start_frame").type) == "int64"
    assert str(schema.field("stream_index").type) == "int16"
    assert re.fullmatch(r"list<\w+: int32>", str(schema.field("label_ids").type))
    assert not schema.field("clip_id").nullable
    assert schema.metadata[b"manifest_version"] == b"1"
    assert schema.metadata[b"root"] == b"/videos"
    assert json.loads(schema.metadata[b"taxonomy"])["labels"][1]["name"] == "wave"


def test_null_and_empty_labels_differ(tmp_path: Path) -> None:
    rows = [clip("a", label_ids=None), clip("b", label_ids=()), clip("c", label_ids=(0, 1))]
    write_manifest(tiny(*rows), tmp_path / "m.parquet")
    assert [one.label_ids for one in read_manifest(tmp_path / "m.parquet").clips] == [None, (), (0, 1)]


def test_rows_are_sorted_by_code_point() -> None:
    assert [one.clip_id for one in tiny(clip("b"), clip("a"), clip("B")).clips] == ["B", "a", "b"]


def test_digest_is_that_of_the_rows_of_the_export(tmp_path: Path) -> None:
    manifest = tiny(clip("b", label_ids=(1,)), clip("a", subject_id="ß"))
    write_jsonl(manifest, tmp_path / "m.jsonl")
    rows = (tmp_path / "m.jsonl").read_bytes().split(b"\n", 1)[1]
    assert hashlib.sha256(rows).hexdigest() == manifest.digest
    assert json.loads(rows.splitlines()[0])["clip_id"] == "a"
    assert b"null" not in rows
    assert replace(manifest, root=Path("/elsewhere")).digest == manifest.digest
    assert tiny(clip("b", label_ids=(0,)), clip("a", subject_id="ß")).digest != manifest.digest


def test_reading_100000_rows_is_fast(tmp_path: Path) -> None:
    labels: dict[str, Any] = {
        "label_ids": (1,),
        "label_names": ("wave",),
        "coarse_ids": (0,),
        "subject_id": "s1",
    }
    rows = tuple(Clip(f"tiny:train:{i:06d}", "tiny", f"v/{i:06d}.mp4", **labels) for i in range(100_000))
    write_manifest(Manifest("tiny", Path("/videos"), TAXONOMY, rows), tmp_path / "m.parquet")
    read_manifest(tmp_path / "m.parquet")  # pyarrow is imported once
    start = time.process_time()
    assert len(read_manifest(tmp_path / "m.parquet").clips) == 100_000
    assert time.process_time() - start < 1.5


def test_taxonomy_travels_with_the_manifest(tmp_path: Path) -> None:
    taxonomy = load_taxonomy("ma52")
    assert taxonomy is not None
    manifest = Manifest("ma52", Path("/videos"), taxonomy, (replace(clip(), dataset="ma52"),))
    write_manifest(manifest, tmp_path / "m.parquet")
    write_jsonl(manifest, tmp_path / "m.jsonl")
    assert read_manifest(tmp_path / "m.parquet").taxonomy == taxonomy
    assert read_jsonl(tmp_path / "m.jsonl").taxonomy == taxonomy


def test_manifest_path_takes_plain_names_only() -> None:
    assert manifest_path(Path("c"), "ma52") == Path("c/manifests/ma52.parquet")
    for name in ("../x", "a/b", "", "A", "a.media", "x" * 65, "a\n"):
        with pytest.raises(UserError, match="dataset name"):
            manifest_path(Path("c"), name)


# ---- what cannot be written -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([clip("a"), clip("a")], "twice"),
        ([clip("a", start_s=1.0)], "no frame"),
        ([clip("a", start_s=float("nan"), start_frame=1)], "no frame"),
        ([clip("a", start_frame=2**63)], "value"),
        ([clip("a", label_ids=(2**31,))], "value"),
        ([clip("a", subject_id="\ud800")], "value"),
        ([clip("a", split=None)], "value"),
    ],
)
def test_unusable_rows_are_not_written(tmp_path: Path, rows: list[Clip], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_manifest(tiny(*rows), tmp_path / "m.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.parquet"
    write_manifest(tiny(clip("a")), path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_manifest(tiny(clip("b")), path)
    assert read_manifest(path).clips[0].clip_id == "a"
    assert [file.name for file in tmp_path.iterdir()] == ["m.parquet"]


def outcome(read: Callable[[Path], Manifest], path: Path) -> tuple[Manifest | None, str]:
    """What was read, or the message of the UserError; any other exception fails the test."""
    try:
        return read(path), ""
    except UserError as error:
        return None, str(error)


# ---- what cannot be read ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, bytes, bytes]:
    folder = tmp_path_factory.mktemp("good")
    manifest = tiny(
        *(clip(f"c{i}", label_ids=(i % 2,), start_frame=i, label_names=("nod",)) for i in range(20))
    )
    write_manifest(manifest, folder / "m.parquet")
    write_jsonl(manifest, folder / "m.jsonl")
    return manifest, (folder / "m.parquet").read_bytes(), (folder / "m.jsonl").read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), byte=st.integers(1, 255), cut=st.booleans())
def test_damaged_parquet_is_a_user_error(
    tmp_path: Path, good: tuple[Manifest, bytes, bytes], where: float, byte: int, cut: bool
) -> None:
    _, data, _ = good
    at = int(where * len(data))
    path = tmp_path / "m.parquet"
    path.write_bytes(data[:at] if cut else data[:at] + bytes([data[at] ^ byte]) + data[at + 1 :])
    again, message = outcome(read_manifest, path)
    assert again is None
    assert str(path) in message
    assert "\n" not in message


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), junk=st.binary(max_size=3))
def test_damaged_jsonl_is_a_user_error(
    tmp_path: Path, good: tuple[Manifest, bytes, bytes], where: float, junk: bytes
) -> None:
    _, _, data = good
    at = int(where * len(data))
    assume(junk != data[at : at + 1])
    path = tmp_path / "m.jsonl"
    path.write_bytes(data[:at] + junk + data[at + 1 :])
    again, message = outcome(read_jsonl, path)
    assert again is not None or f"{path}:" in message
    assert "\n" not in message


def test_other_files_are_not_manifests(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "m.parquet"
    with pytest.raises(
        UserError, match=r"no dataset 'm' in this cache; import it: bmoe-cache dataset import m "
    ):
        read_manifest(path)
    for name in ("theirs.parquet", "mine.parquet", "mine.media.parquet"):
        (tmp_path / name).touch()
    with pytest.raises(
        UserError, match="no dataset 'm' in this cache; those there are: mine, theirs; or import"
    ):
        read_manifest(path)
    pq.write_table(pa.table({"clip_id": ["a"]}), path)
    with pytest.raises(UserError, match="not a manifest of bmoe-cache"):
        read_manifest(path)
    for data in (b"", b"PAR1PAR1", b"hello" * 100):
        path.write_bytes(data)
        with pytest.raises(UserError, match="damaged"):
            read_manifest(path)


def rewrite(path: Path, change: object) -> None:
    """Write a good manifest, then hand its table to `change` and store what comes back."""
    import pyarrow.parquet as pq

    write_manifest(tiny(clip("a", start_frame=3)), path)
    pq.write_table(change(pq.read_table(path)), path)  # type: ignore[operator]


def test_a_newer_version_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    rewrite(
        path,
        lambda table: table.replace_schema_metadata({**table.schema.metadata, b"manifest_version": b"2"}),
    )
    with pytest.raises(UserError, match=r"E_VERSION manifest version 2.*upgrade"):
        read_manifest(path)
    write_jsonl(tiny(clip()), tmp_path / "m.jsonl")
    text = (tmp_path / "m.jsonl").read_text()
    (tmp_path / "m.jsonl").write_text(text.replace('"manifest_version":1', '"manifest_version":7'))
    with pytest.raises(UserError, match=r"E_VERSION manifest version 7.*upgrade"):
        read_jsonl(tmp_path / "m.jsonl")


def test_wrong_columns_are_named(tmp_path: Path) -> None:
    import pyarrow as pa

    path = tmp_path / "m.parquet"
    rewrite(path, lambda table: table.drop_columns(["clip_id"]))
    with pytest.raises(UserError, match="E_SCHEMA_MISSING_COLUMN clip_id"):
        read_manifest(path)
    rewrite(path, lambda table: table.append_column("colour", pa.array(["x"])))
    with pytest.raises(UserError, match="E_SCHEMA_TYPE unknown column 'colour'"):
        read_manifest(path)
    field = pa.field("clip_id", pa.string())
    rewrite(path, lambda table: table.set_column(0, field, pa.array([None], pa.string())))
    with pytest.raises(UserError, match="E_SCHEMA_TYPE column clip_id has empty cells"):
        read_manifest(path)
    rewrite(
        path,
        lambda table: table.set_column(table.column_names.index("start_frame"), "start_frame", [["many"]]),
    )
    with pytest.raises(UserError, match="damaged"):
        read_manifest(path)


def test_absent_optional_columns_take_their_defaults(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    rewrite(path, lambda table: table.drop_columns(["modality", "extra", "start_frame"]))
    assert read_manifest(path).clips == (clip("a"),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"clip_id":"a","video_path":"a"}', "E_SCHEMA_MISSING_COLUMN dataset"),
        ('{"clip_id":1,"dataset":"d","video_path":"a"}', "E_SCHEMA_TYPE field clip_id"),
        ('{"clip_id":"a","dataset":null,"video_path":"a"}', "E_SCHEMA_TYPE field dataset"),
        (
            '{"clip_id":"a","dataset":"d","video_path":"a","start_frame":1.5}',
            "E_SCHEMA_TYPE field start_frame",
        ),
        (
            '{"clip_id":"a","dataset":"d","video_path":"a","start_frame":true}',
            "E_SCHEMA_TYPE field start_frame",
        ),
        (
            '{"clip_id":"a","dataset":"d","video_path":"a","fps_num":9999999999}',
            "E_SCHEMA_TYPE field fps_num",
        ),
        ('{"clip_id":"a","dataset":"d","video_path":"a","label_ids":["x"]}', "E_SCHEMA_TYPE field label_ids"),
        ('{"clip_id":"a","dataset":"d","video_path":"a","label_ids":3}', "E_SCHEMA_TYPE field label_ids"),
        ('{"clip_id":"a","dataset":"d","video_path":"a","start_s":NaN}', "not JSON"),
        ('{"clip_id":"a","dataset":"d","video_path":"a","start_s":1e999}', "E_SCHEMA_TYPE field start_s"),
        ('{"clip_id":"\\ud800","dataset":"d","video_path":"a"}', "E_SCHEMA_TYPE field clip_id"),
        ('{"clip_id":"a","dataset":"d","video_path":"a","colour":1}', "unknown column 'colour'"),
        ("[1]", "not a JSON object"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("9" * 5000, "not JSON"),
    ],
)
def test_wrong_jsonl_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "m.jsonl"
    write_jsonl(tiny(clip()), path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=message) as caught:
        read_jsonl(path)
    assert f"{path}:3: " in str(caught.value)


def test_jsonl_from_other_systems(tmp_path: Path) -> None:
    manifest = tiny(clip(subject_id="a\u2028b"))
    path = tmp_path / "m.jsonl"
    write_jsonl(manifest, path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert read_jsonl(path) == manifest
    path.write_bytes(path.read_bytes() + b'{"clip_id":"\xff"}')
    with pytest.raises(UserError, match="E_ENCODING"):
        read_jsonl(path)
    path.write_text("")
    with pytest.raises(UserError, match="not JSON"):
        read_jsonl(path)


# ---- content addresses and paths --------------------------------------------------------------------------


def test_clip_key_is_the_digest_of_the_content() -> None:
    one = clip(stream_index=1, start_frame=3, end_frame=9)
    assert clip_key(one, SHA) == digest({"media": SHA, "stream": 1, "start": 3, "end": 9, "track": None})
    assert clip_key(clip(), SHA) == digest(
        {"media": SHA, "stream": None, "start": 0, "end": None, "track": None}
    )


@quick
@given(clips(), clips())
def test_clip_key_depends_on_content_only(one: Clip, other: Clip) -> None:
    names = ("stream_index", "start_frame", "end_frame", "bbox_track", "skeleton_path", "person_id")
    content = {name: getattr(one, name) for name in names}
    assert clip_key(replace(other, **content), SHA) == clip_key(one, SHA)


def test_clip_key_of_a_person_and_of_a_skeleton() -> None:
    track = ((3, 0.0, 0.5, 10.0, 20.0), (9, 1.0, 0.5, 11.0, 20.0))
    facts = {"media": SHA, "stream": None, "start": 0, "end": None}
    assert clip_key(clip(bbox_track=track, person_id="left"), SHA) == digest({**facts, "track": track})
    posed = clip(skeleton_path="a.skeleton", skeleton_format="ntu_skeleton", person_id="left")
    assert clip_key(posed, SHA) == digest({**facts, "track": None})
    wanted = {"media": SHA, "format": "ntu_skeleton", "person": "left", "start": 0, "end": None}
    assert clip_key(posed, SHA, "skeleton") == digest(wanted)
    assert clip_key(replace(posed, skeleton_path="renamed.skeleton"), SHA, "skeleton") == digest(wanted)


@pytest.mark.parametrize(
    "change",
    [{"stream_index": 0}, {"start_frame": 1}, {"end_frame": 20}, {"bbox_track": ((0, 1.0, 2.0, 3.0, 4.0),)}],
)
def test_clip_key_changes_with_the_content(change: dict[str, Any]) -> None:
    assert clip_key(clip(**change), SHA) != clip_key(clip(), SHA)
    assert clip_key(clip(), SHA) != clip_key(clip(), hashlib.sha256(b"other").hexdigest())


def test_clip_key_takes_only_a_sha256() -> None:
    for wrong in ("", "ab", SHA.upper(), SHA + "\n", SHA + '","x":"'):
        with pytest.raises(ValueError, match="64"):
            clip_key(clip(), wrong)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("../a.mp4", "E_PATH_ESCAPE"),
        ("a/../../b.mp4", "E_PATH_ESCAPE"),
        ("..", "E_PATH_ESCAPE"),
        ("a\0b", "E_PATH_ESCAPE"),
        ("out/secret.mp4", "E_PATH_ESCAPE"),
        ("out.mp4", "E_PATH_ESCAPE"),
        ("/etc/passwd", "E_PATH_ABSOLUTE"),
        ("C:/a.mp4", "E_PATH_ABSOLUTE"),
        ("a\\b.mp4", "E_PATH_ABSOLUTE"),
        ("", "E_NO_MEDIA"),
    ],
)
def test_no_path_leaves_the_root(tmp_path: Path, path: str, code: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "root2"
    root.mkdir()
    outside.mkdir()
    (outside / "secret.mp4").write_bytes(b"x")
    (root / "out").symlink_to(outside)
    (root / "out.mp4").symlink_to(outside / "secret.mp4")
    with pytest.raises(ClipError) as caught:
        resolve(root, path)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_paths_and_links_inside_the_root_resolve(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "pool").mkdir(parents=True)
    (root / "pool/a..b.mp4").write_bytes(b"x")
    (root / "link.mp4").symlink_to("pool/a..b.mp4")
    (root / "loop").symlink_to("loop")
    (tmp_path / "also").symlink_to(root)
    real = root.resolve() / "pool/a..b.mp4"
    assert resolve(root, "pool/a..b.mp4") == real
    assert resolve(root, "link.mp4") == real
    assert resolve(tmp_path / "also", "link.mp4") == real
    assert resolve(root, "missing.mp4") == root.resolve() / "missing.mp4"
    resolve(root, "loop")


@quick
@given(st.text(alphabet="ab./\\\0:~", max_size=12))
def test_resolve_never_leaves_the_root(tmp_path: Path, path: str) -> None:
    try:
        found = resolve(tmp_path, path)
    except ClipError:
        return
    assert found.is_relative_to(tmp_path.resolve())
