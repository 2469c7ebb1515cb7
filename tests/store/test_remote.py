"""Caches behind a URL: a folder, and S3 and http of a server on loopback."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import cli
from pipeline.errors import UserError
from pipeline.store import workplace as workplace_module
from pipeline.store.layout import check_cache, load_build, url_of
from pipeline.store.reader import Cache
from pipeline.store.records import from_bytes, to_bytes
from pipeline.store.remote import INVENTORY, Remote, pull, push
from pipeline.store.verify import verify
from pipeline.store.workplace import view, workplace
from pipeline.store.writer import ShardBuilder, Stage, open_stage, write_build
from tests.decode.clips import write_video
from tests.run.worlds import bmoe
from tests.store.caches import dataset_cache, random_rows

SHARDS = 9


@dataclass(frozen=True)
class Place:
    """A remote cache: where to push, and where to read."""

    write: str
    read: str

    def put(self, name: str, data: bytes) -> None:
        Remote(self.write).write(name, data)

    def get(self, name: str) -> bytes:
        (data,) = Remote(self.write).read([name])
        return data

    def names(self) -> set[str]:
        return Remote(self.write).names()


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """moto's S3 server on loopback with a bucket that anybody may read; yields its endpoint."""
    from boto3 import client
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    settings = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**settings, "AWS_ENDPOINT_URL": endpoint}.items():
            patch.setenv(name, value)
        s3 = client("s3")
        s3.create_bucket(Bucket="bucket")
        rule = {
            "Effect": "Allow",
            "Principal": "*",
            "Action": "s3:GetObject",
            "Resource": "arn:aws:s3:::bucket/*",
        }
        s3.put_bucket_policy(
            Bucket="bucket", Policy=json.dumps({"Version": "2012-10-17", "Statement": [rule]})
        )
        yield endpoint
    server.stop()


@pytest.fixture(params=["file", "s3", pytest.param("http", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Every test runs on each kind of store, with a user's cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    if request.param == "file":
        url = f"file://{tmp_path}/remote"
        return Place(url, url)
    endpoint = request.getfixturevalue("s3_server")
    path = f"bucket/{tmp_path.name}"
    return Place(f"s3://{path}", f"s3://{path}" if request.param == "s3" else f"{endpoint}/{path}")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return dataset_cache(tmp_path / "cache")


def everything(cache: Cache) -> dict[tuple[str, str, str], np.ndarray]:
    rows = {}
    for name, key in cache.builds("demo")["stages"].items():
        stage = cache.stage(name, key)
        for array in stage.arrays:
            for clip in stage.clips:
                rows[name, array, clip] = np.array(stage.read(clip, array))
    return rows


def assert_same(one: Cache, other: Cache) -> None:
    first, second = everything(one), everything(other)
    assert first.keys() == second.keys()
    for name, rows in first.items():
        np.testing.assert_array_equal(rows, second[name])


def semantic(root: Path) -> Stage:
    stage = open_stage(root, "semantic", load_build(root, "demo")["stages"]["semantic"])
    assert stage is not None
    return stage


def add_shard(stage: Stage, key: str, seed: int = 1) -> None:
    builder = ShardBuilder(stage, stage.next_shard)
    builder.add(key, key, {spec.name: random_rows(spec, 4, seed) for spec in stage.arrays.values()}, {})
    builder.commit()


def test_there_and_back(cache: Path, place: Place, tmp_path: Path) -> None:
    assert push(cache, place.write)["shards"] == SHARDS
    assert push(cache, place.write)["shards"] == 0
    assert pull(place.read, tmp_path / "new")["shards"] == SHARDS
    assert pull(place.read, tmp_path / "new")["shards"] == 0
    assert verify(tmp_path / "new").problems == ()
    old, new = ({path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
                for root in (cache, tmp_path / "new"))  # fmt: skip
    assert old.keys() == new.keys()
    assert [str(name) for name in old if old[name] != new[name] and str(name) != "cache.json"] == []


def test_read_in_place(cache: Path, place: Place) -> None:
    push(cache, place.write)
    remote, local = Cache(place.read), Cache(cache)
    assert_same(remote, local)
    assert remote.dataset("demo").clips == local.dataset("demo").clips
    assert remote.clip_keys("demo") == local.clip_keys("demo")
    assert remote.quarantined("demo") == local.quarantined("demo")
    key = local.builds("demo")["stages"]["semantic"]
    ours, theirs = local.stage("semantic", key), Cache(place.read).stage("semantic", key)
    for array in ours.arrays:
        for one, other in zip(
            ours.read_many(list(ours.clips), array), theirs.read_many(list(ours.clips), array), strict=True
        ):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(ours.rows(array, 1), theirs.rows(array, 1))


def test_only_what_is_asked_for_travels_and_only_once(
    cache: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(cache, place.write)
    asked: list[tuple[str, int | None, int | None]] = []
    ranges = Remote.ranges

    def record(self: Remote, wanted: list) -> list[bytes]:
        asked.extend(wanted)
        return ranges(self, wanted)

    key = load_build(cache, "demo")["stages"]["semantic"]
    stage = Cache(place.read).stage("semantic", key)
    clips = [
        next(name for name, clip in stage.clips.items() if clip.clip_id == f"c{i:02d}") for i in (1, 4, 5)
    ]
    monkeypatch.setattr(Remote, "ranges", record)
    rows = stage.read(clips[0], "features")
    ((name, start, stop),) = asked
    assert name.endswith("features.zarr/features/c/0/0/0")
    assert (start, stop) == (30, 90)  # two rows of 30 bytes behind the one of c00
    stage.read_many(clips, "features")
    assert len(asked) == 3 or [a[1:] for a in asked[1:]] == [(300, 480)]  # neighbours in one go
    done = len(asked)
    np.testing.assert_array_equal(Cache(cache).stage("semantic", key).read(clips[0], "features"), rows)
    stage.read_many(clips, "features")
    assert len(asked) == done
    again = Cache(place.read).stage("semantic", key)  # another process, another day
    records = len(asked)
    np.testing.assert_array_equal(again.read(clips[0], "features"), rows)
    assert len(asked) == records


def test_a_kill_in_the_middle_of_a_push(cache: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Remote.write
    for lifetime in (1, 4, 6, 8, 11):
        left = iter(range(lifetime))

        def mortal(self: Remote, name: str, data: bytes, left: Iterator[int] = left) -> None:
            next(left)  # raises StopIteration, as a kill would stop it here
            write(self, name, data)

        with monkeypatch.context() as patch:
            patch.setattr(Remote, "write", mortal)
            with pytest.raises(StopIteration):
                push(cache, place.write)
        names = place.names()
        for name in names:  # a receipt is put after its files
            stage, is_receipt, number = name.partition("/receipts/")
            if is_receipt:
                number = number.removesuffix(".json")
                local = {
                    path.relative_to(cache).as_posix()
                    for path in cache.glob(f"{stage}/features.zarr/*/c/{number}/**/*")
                    if path.is_file()
                }
                assert local
                assert local <= names
    with pytest.raises(UserError, match=rf"{INVENTORY}: .*"):
        Cache(place.read)
    assert 0 < push(cache, place.write)["shards"] < SHARDS
    assert_same(Cache(place.read), Cache(cache))


def test_the_next_machine_goes_on(cache: Path, place: Place, tmp_path: Path) -> None:
    push(cache, place.write)
    pull(place.read, tmp_path / "second")
    add_shard(semantic(tmp_path / "second"), "new clip")
    write_build(tmp_path / "second", "demo", {**load_build(tmp_path / "second", "demo"), "preset": "other"})
    opened = Cache(place.read)  # a reader that was there before
    assert push(tmp_path / "second", place.write)["shards"] == 1
    key = semantic(cache).key
    assert "new clip" not in opened.stage("semantic", key).clips
    assert "new clip" in Cache(place.read).stage("semantic", key).clips
    assert pull(place.read, cache)["shards"] == 1
    assert "new clip" in Cache(cache).stage("semantic", key).clips
    assert set(load_build(cache, "demo")["presets"]) == {"tiny", "other"}  # gc keeps what either reaches
    assert verify(cache).problems == ()


def test_work_goes_to_the_url_shard_by_shard(
    cache: Path, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place.write != place.read:
        pytest.skip("http is read-only")
    push(cache, place.write)
    monkeypatch.setattr(workplace_module, "POLL_S", 0.05)
    url = Path(place.write)  # as --cache gives it
    key = semantic(cache).key
    with suppress(RuntimeError), workplace(url) as folder:
        stage = semantic(folder)
        add_shard(stage, "first")
        receipt = stage.folder.receipt(stage.next_shard - 1).relative_to(folder).as_posix()
        for _ in range(400):
            if receipt in place.names():
                break
            time.sleep(0.05)
        assert receipt in place.names()  # while the work goes on
        add_shard(stage, "last")
        raise RuntimeError("a bug")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    assert {"first", "last"} <= Cache(place.read).stage("semantic", key).clips.keys()
    write_build(cache, "other", load_build(cache, "demo"))
    push(cache, place.write)  # by somebody else meanwhile
    with workplace(url) as folder:
        assert verify(folder).problems == ()
        assert load_build(folder, "other")
    assert view(url) != folder
    assert load_build(view(url), "other")


def test_caches_built_apart_are_not_mixed(cache: Path, place: Place, tmp_path: Path) -> None:
    push(cache, place.write)
    other = dataset_cache(tmp_path / "other")
    for root, seed in ((cache, 1), (other, 2)):
        add_shard(semantic(root), "k", seed)
    push(cache, place.write)
    before = {name: place.get(name) for name in place.names()}
    for act in (lambda: push(other, place.write), lambda: pull(place.read, other)):
        with pytest.raises(UserError, match="both sides have a shard 3 of their own, built apart"):
            act()
    assert {name: place.get(name) for name in place.names()} == before
    assert verify(other).problems == ()


def test_damage_does_not_travel(cache: Path, place: Place, tmp_path: Path) -> None:
    stage = semantic(cache)
    path = stage.folder.shard_file(stage.arrays["features"], 1)
    good = path.read_bytes()
    bad = bytes([good[0] ^ 1]) + good[1:]
    path.write_bytes(bad)
    with pytest.raises(
        UserError, match=r"features/c/1/0/0 is damaged: the rows of 1 of .* verify --repair` where it lies"
    ):
        push(cache, place.write)
    path.write_bytes(good)
    push(cache, place.write)
    place.put(path.relative_to(cache).as_posix(), bad)
    reader = Cache(place.read).stage("semantic", stage.key)
    clip = next(key for key, rows in reader.clips.items() if rows.shard == 1 and rows.row_start == 0)
    with pytest.raises(
        UserError, match=rf"^{place.read}/stages/.* is damaged: the checksum of clip c\d\d is wrong"
    ):
        reader.read(clip, "features")
    others = [key for key in reader.clips if key != clip]
    reader.read_many(others, "features")
    with pytest.raises(UserError, match=r"features/c/1/0/0 is damaged"):
        pull(place.read, tmp_path / "new")
    place.put(path.relative_to(cache).as_posix(), good)
    assert len(reader.read(clip, "features")) == reader.clips[clip].n_rows  # asked for again


@pytest.mark.parametrize("table", ["demo.parquet", "demo.media.parquet"])
def test_a_damaged_clip_table_does_not_travel(cache: Path, tmp_path: Path, table: str) -> None:
    url = f"file://{tmp_path}/remote"
    push(cache, url)
    path = cache / "manifests" / table
    good = path.read_bytes()
    quarter = len(good) // 4
    for bad in (good[:-10], b"", good[:quarter] + bytes(quarter) + good[2 * quarter :]):
        path.write_bytes(bad)
        with pytest.raises(UserError, match=rf"manifests/{table} is damaged .*; import the dataset again"):
            push(cache, url)
    assert (tmp_path / "remote" / "manifests" / table).read_bytes() == good


def test_damage_of_the_mirror_heals(cache: Path, place: Place) -> None:
    push(cache, place.write)
    first = Cache(place.read)
    truth = everything(first)
    for path in first.root.rglob("*"):
        if path.is_file():
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 8
            path.write_bytes(data)
    second = everything(Cache(place.read))
    for name, rows in truth.items():
        np.testing.assert_array_equal(rows, second[name])


def test_names_from_outside_stay_inside(cache: Path, place: Place, tmp_path: Path) -> None:
    push(cache, place.write)
    record = from_bytes(place.get(INVENTORY))
    for name in ("../../evil", "/etc/evil", "stages/../../evil.json", "builds/../evil.json", "stages/x/evil"):
        record["files"][name] = [4, 1]
    place.put(INVENTORY, to_bytes(record))
    before = set(tmp_path.rglob("*"))
    root = Cache(place.read).root
    assert all(path.is_relative_to(tmp_path / "home") for path in set(tmp_path.rglob("*")) - before)
    assert not list(root.parent.rglob("evil*"))
    place.put(INVENTORY, b"{}")
    with pytest.raises(UserError, match=rf"{INVENTORY} is damaged"):
        Cache(place.read)


@pytest.mark.parametrize("place", ["file", "s3"], indirect=True)
def test_clip_tables_behind_a_url(place: Place, tmp_path: Path) -> None:
    """Read, split and checked there as in a folder; what was found out about the files stays there."""
    root, out = tmp_path / "root", tmp_path / "clips.jsonl"
    for name in ("train/nod/a", "train/nod/b", "train/wave/c", "train/wave/d"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(root / f"{name}.mp4", 5)

    def dataset(*words: object) -> dict[str, Any]:
        call = ["dataset", *map(str, words), "--cache", place.write, "--json"]
        done = CliRunner().invoke(cli.app, call)
        assert done.exit_code == 0, done.output
        return dict(json.loads(done.stdout))

    dataset("import", "tiny", "--as", "folder", "--root", root)
    assert dataset("validate", "tiny")["clips"] == 4
    assert "manifests/tiny.media.parquet" not in place.names()
    assert "W_DUP_CONTENT" in dataset("validate", "tiny", "--deep", "--decoders", 1)["levels"]
    assert "manifests/tiny.media.parquet" in place.names()
    split = dataset("split", "tiny", "--to", "fold", "--folds", 2, "--by", "group_id")
    assert {name: row["clips"] for name, row in split["rows"].items()} == {"train": 2, "val": 2}
    assert {"manifests/fold.parquet", "manifests/fold.media.parquet"} <= place.names()
    assert dataset("stats", "fold")["splits"] == split["rows"]
    assert dataset("export", "fold", "--out", out)["clips"] == len(out.read_text().splitlines()) - 1


def test_shards_that_are_gone_there_are_gone_here(cache: Path, place: Place) -> None:
    push(cache, place.write)
    key = semantic(cache).key
    assert len(Cache(place.read).stage("semantic", key).clips) == 12
    record = from_bytes(place.get(INVENTORY))
    gone = next(
        name
        for name in record["files"]
        if name.startswith("stages/semantic") and name.endswith("/receipts/0.json")
    )
    del record["files"][gone]
    place.put(INVENTORY, to_bytes(record))
    assert len(Cache(place.read).stage("semantic", key).clips) < 12


def test_where_a_url_is_no_use(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="http is read-only"):
        push(cache, "http://127.0.0.1:9/cache")
    with pytest.raises(UserError, match=r"foo://x: .*pip install"):
        push(cache, "foo://x")
    with pytest.raises(
        UserError, match=r"s3://bucket/cache: this command needs a cache on disk; run `bmoe-cache pull"
    ):
        check_cache(Path("s3://bucket/cache"))
    with pytest.raises(UserError, match="is not a cache"):
        pull(f"file://{tmp_path}/nothing", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("root", "url"),
    [
        ("s3://bucket/cache/", "s3://bucket/cache"),
        (Path("s3://bucket/cache"), "s3://bucket/cache"),
        (Path("https://host:80/a"), "https://host:80/a"),
        (Path("/data/cache"), None),
        ("caches/ma52", None),
        (Path("file:///srv/cache"), "file:///srv/cache"),
    ],
)
def test_urls(root: Path | str, url: str | None) -> None:
    assert url_of(root) == url


def test_a_mirrored_file_of_another_size(cache: Path, place: Place) -> None:
    """A shard there may have been built anew; who has the old file open keeps it."""
    push(cache, place.write)
    remote = Cache(place.read)
    everything(remote)
    path = next(remote.root.glob("stages/semantic/*/features.zarr/features/c/0/0/0"))
    held = open(path, "rb")  # noqa: PTH123, SIM115  (somebody has it open)
    os.truncate(path, 10)
    assert_same(Cache(place.read), Cache(cache))
    held.close()


@pytest.mark.slow
def test_a_machine_is_lost_and_another_goes_on(
    s3_server: str, small_world: Path, built_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://bucket/{tmp_path.name}"
    words = ("build", "--dataset", "demo", "--preset", "demo", "--cache", url, "--set", "run.shard_clips=2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    done = bmoe("dataset", "import", "demo", "--root", small_world, "--cache", url)
    assert done.returncode == 0, done.stderr
    build = subprocess.Popen([sys.executable, "-m", "cli", *words], start_new_session=True)
    while not (held := {name for name in Remote(url).names() if "/receipts/" in name}):
        assert build.poll() is None
        time.sleep(0.2)
    os.killpg(build.pid, signal.SIGKILL)
    build.wait()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    done = bmoe(*words, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["clips"]["done"] == 12
    for stage, computed in record["computed"].items():
        kept = sum(name.startswith(f"stages/{stage}/") for name in held)
        assert computed <= 12 - 2 * kept  # less where more was put between the look and the kill
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "three"))
    ours, whole = everything(Cache(url)), everything(Cache(built_cache))
    assert ours.keys() == whole.keys()
    for name, rows in whole.items():
        np.testing.assert_allclose(ours[name].astype(float), rows.astype(float), atol=4e-3, err_msg=str(name))
