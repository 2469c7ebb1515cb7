"""Logs of unfinished shards: what a cut or a flipped bit leaves, and how one turn goes on behind another."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.wip import DamagedFrameError, LogWriter, Origin, frames, logs, read_clips
from pipeline.store.writer import Stage, encode_rows
from tests.store.caches import make_stage, random_rows

JOB = "0123456789abcdef"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return make_stage(tmp_path_factory.mktemp("wip") / "cache")


def write(stage: Stage, shard: int, turn: int, after: int, clips: list[str], job: str = JOB) -> Path:
    log = LogWriter(stage.folder, turn, Origin(job, shard, after))
    for i, key in enumerate(clips):
        rows = {spec.name: random_rows(spec, 1 + i % 3, i) for spec in stage.arrays.values()}
        made = encode_rows(stage, rows)
        log.add(key, f"clip {key}", made.n_rows, {"frames": i}, made.stored)
    log.close()
    return log.path


def keys(stage: Stage, shard: int, check: bool = True) -> list[str]:
    return [entry.clip_key for entry in read_clips(stage.folder, shard, JOB, stage.arrays, check)]


def test_rows_come_back_as_they_were(stage: Stage) -> None:
    rows = {spec.name: random_rows(spec, 3, 5) for spec in stage.arrays.values()}
    made = encode_rows(stage, rows)
    log = LogWriter(stage.folder, 1, Origin(JOB, 100, 0))
    log.add("refused", "clip 0", 0, {}, {})
    log.add("k", "clip 1", made.n_rows, {"fps": [30, 1]}, made.stored)
    log.close()
    refused, entry = read_clips(stage.folder, 100, JOB, stage.arrays)
    assert (refused.clip_key, refused.n_rows) == ("refused", 0)
    assert (entry.clip_id, entry.n_rows, entry.facts) == ("clip 1", 3, {"fps": [30, 1]})
    assert entry.payload() == {name: [bytes(part) for part in parts] for name, parts in made.stored.items()}


def test_a_turn_goes_on_behind_what_it_took_over(stage: Stage) -> None:
    write(stage, 101, 1, 0, ["a", "b", "c"])
    write(stage, 101, 2, 2, ["C", "D"])  # took two clips over; the third was not in a whole block
    write(stage, 101, 7, 3, ["d"])
    assert keys(stage, 101) == ["a", "b", "C", "d"]
    assert list(logs(stage.folder, 101)) == [1, 2, 7]
    with pytest.raises(FileExistsError):
        write(stage, 101, 7, 4, ["e"])


def test_what_a_frozen_process_appends_counts_no_more(stage: Stage) -> None:
    slow = LogWriter(stage.folder, 1, Origin(JOB, 102, 0))
    slow.add("a", "", 0, {}, {})
    slow.add("b", "", 0, {}, {})
    write(stage, 102, 2, 1, ["B"])
    slow.add("c", "", 0, {}, {})
    slow.close()
    assert keys(stage, 102) == ["a", "B"]


def test_logs_of_another_job_or_behind_a_hole_are_ignored(stage: Stage) -> None:
    write(stage, 103, 1, 0, ["x"], job="another")
    write(stage, 103, 2, 0, ["a", "b"])
    write(stage, 103, 3, 9, ["j"])
    assert keys(stage, 103) == ["a", "b"]


@settings(max_examples=60)
@given(data=st.data())
def test_a_log_cut_anywhere_keeps_the_frames_before(stage: Stage, data: st.DataObject) -> None:
    clips = [f"clip{i}" for i in range(5)]
    for old in logs(stage.folder, 104).values():
        old.unlink()
    path = write(stage, 104, 1, 0, clips)
    whole = path.read_bytes()
    ends = [offset + size for _, offset, size in frames(path)]
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    assert keys(stage, 104) == clips[: max(sum(end <= cut for end in ends) - 1, 0)]
    if cut not in (0, *ends):
        with pytest.raises(DamagedFrameError) as caught:
            list(frames(path))
        assert caught.value.torn


@settings(max_examples=100)
@given(data=st.data())
def test_a_flipped_bit_ends_a_log(stage: Stage, data: st.DataObject) -> None:
    clips = [f"clip{i}" for i in range(4)]
    for old in logs(stage.folder, 105).values():
        old.unlink()
    path = write(stage, 105, 1, 0, clips)
    good = path.read_bytes()
    ends = [offset + size for _, offset, size in frames(path)]
    bit = data.draw(st.integers(0, 8 * len(good) - 1))
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bad)
    assert keys(stage, 105) == clips[: max(sum(end <= bit // 8 for end in ends) - 1, 0)]
    with pytest.raises(DamagedFrameError) as caught:
        list(frames(path))
    assert not caught.value.torn
