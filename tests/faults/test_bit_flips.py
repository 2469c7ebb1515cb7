"""Flipped bits, one at a time, anywhere in a cache: verify finds each, a checking reader is never wrong."""

import random
from pathlib import Path

import numpy as np
import pytest

from pipeline.clip import Clip
from pipeline.decode.index import FrameIndex, load_index, save_index
from pipeline.decode.probe import Probe
from pipeline.errors import ClipError, UserError
from pipeline.manifest import Manifest, manifest_path, write_manifest
from pipeline.media import Media, media_path, write_media
from pipeline.spec import digest
from pipeline.store.jobs import Job, JobShard, create_job, folder_of, load_jobs
from pipeline.store.lease import take
from pipeline.store.reader import Cache
from pipeline.store.records import QuarantineEntry
from pipeline.store.verify import verify
from pipeline.store.wip import LogWriter, Origin, read_clips
from pipeline.store.writer import Stage, encode_rows, open_stage, write_build
from pipeline.taxonomy import load_taxonomy
from tests.store.caches import fill, make_stage, random_rows


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("os.fsync", lambda _: None)
    stage = make_stage(tmp_path / "cache")
    fill(stage, [3, 9, 5, 16, 1, 7])
    for key in ("a", "b", "c"):
        error = ClipError("E_DECODE", "no frame could be decoded", "pyav 18", 2)
        stage.add_quarantine(QuarantineEntry.of(key, f"clip {key}", "semantic", error))
    root = stage.folder.root
    write_build(root, "demo", {"preset": "small", "stages": {"semantic": stage.key}})
    begin_shard(stage)
    taxonomy = load_taxonomy("demo")
    assert taxonomy is not None
    clips = tuple(Clip(f"demo:train:{name}", "demo", f"{name}.mp4", label_ids=(3,)) for name in "abcd")
    write_manifest(Manifest("demo", root / "videos", taxonomy, clips), manifest_path(root, "demo"))
    files = {clip.media_path: Media(clip.media_path, 9, 8, digest(clip.clip_id), 60) for clip in clips}
    write_media(media_path(root, "demo"), files)
    frames = FrameIndex(np.arange(0, 90_000, 33), np.arange(0, 2_700, 12))
    facts = Probe("mp4", 0, True, 640, 360, (1, 0, 0, 1), 30, 1, 2_728, None, None, True, (), frames)
    save_index(root / INDEX, facts)
    return root


INDEX = "index/recording.index"
UNFINISHED = tuple(digest(["unfinished", number]) for number in range(4))


def begin_shard(stage: Stage) -> None:
    """A job whose worker was killed in its third clip, in its second turn."""
    root, number = stage.folder.root, stage.next_shard
    shard = JobShard(stage.name, stage.key, number, UNFINISHED, 16)
    job = Job(0, "0123456789abcdef", "demo", UNFINISHED, (2, 2), (shard,))
    assert create_job(root, job)
    for turn, (first, last) in enumerate([(0, 2), (1, 3)], 1):
        held = take(folder_of(root), 0, turn)
        assert held is not None
        log = LogWriter(stage.folder, turn, Origin(job.id, number, first))
        for i in range(first, last):
            rows = {spec.name: random_rows(spec, 2 + i, i) for spec in stage.arrays.values()}
            stored = encode_rows(stage, rows)
            log.add(UNFINISHED[i], f"clip {i}", stored.n_rows, {"frames": i}, stored.stored)
        log.close()
        left = held.path.read_bytes()
        held.__exit__()
    held.path.write_bytes(left)  # as a kill leaves it


def finished(root: Path) -> list[object]:
    """What a build would take from the logs."""
    (job,) = load_jobs(root)
    stage = open_stage(root, "semantic", job.shards[0].key)
    assert stage is not None
    entries = read_clips(stage.folder, job.shards[0].shard, job.id, stage.arrays)
    return [(entry.clip_key, entry.n_rows, entry.facts, str(entry.payload())) for entry in entries]


def contents(root: Path) -> dict[str, object]:
    """Everything a program can learn from a cache."""
    cache = Cache(root, check=True)
    build = cache.builds("demo")
    stage = cache.stage("semantic", build["stages"]["semantic"])
    found: dict[str, object] = {
        "build": build,
        "facts": stage.facts,
        "quarantined": cache.quarantined("demo"),
        "clips": cache.dataset("demo"),
        "keys": cache.clip_keys("demo"),
    }
    facts = load_index(root / INDEX)
    if facts is None or facts.index is None:
        raise UserError("it is made again")
    found["frames"] = facts.index.pts.tolist(), facts.index.keys.tolist()
    for key, clip in stage.clips.items():
        found[key] = clip
        for array in stage.arrays:
            found[f"{key} {array}"] = stage.read(key, array).tobytes()
            rows, _ = stage.read_many([key], array)
            np.testing.assert_array_equal(rows, stage.read(key, array))
    return found


@pytest.mark.parametrize("flips", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_flip_is_found_and_none_is_read(cache: Path, flips: int) -> None:
    truth, dice = contents(cache), random.Random(4)
    assert verify(cache).problems == ()
    log = finished(cache)
    assert len(log) == 3
    files = sorted(path for path in cache.rglob("*") if path.is_file())
    refused = 0
    for _ in range(flips):
        path = dice.choice(files)
        good = path.read_bytes()
        bit = dice.randrange(8 * len(good))
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        where = f"bit {bit} of {path.relative_to(cache)}"
        try:
            assert contents(cache) == truth, where
            taken = finished(cache)
            assert taken == log[: len(taken)], where
        except UserError:
            refused += 1
        assert [p.path for p in verify(cache).problems] == [path.relative_to(cache).as_posix()], where
        path.write_bytes(good)
    assert refused > flips / 4
    assert verify(cache).problems == ()
    assert contents(cache) == truth


def test_repair_of_jobs_leases_and_logs(cache: Path) -> None:
    """What is damaged is set aside, and what was finished before the damage is kept."""
    (log,) = cache.glob("stages/*/*/wip/*.2.log")
    whole, before = log.read_bytes(), finished(cache)
    log.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (problem,) = verify(cache, repairing=True).problems
    assert problem.kind == "damaged"
    assert finished(cache) == before[:2]
    (aside,) = cache.glob("stages/*/*/damaged/*.log")
    assert aside.read_bytes() != whole
    for path in (cache / "jobs" / "0.2.lease", cache / "jobs" / "0.json"):
        path.write_bytes(path.read_bytes().replace(b"e", b"f", 1))
        report = verify(cache, repairing=True)
        assert report.problems[0].path == path.relative_to(cache).as_posix()
        assert report.sound
        assert (cache / "jobs" / "damaged" / path.name).exists()
        assert not path.exists()
    assert {problem.reason for problem in verify(cache).problems} == {"no job goes on with it"}
    assert load_jobs(cache) == []
