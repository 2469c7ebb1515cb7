"""The board: jobs for everything that is missing, each given to one, whoever asks, in whatever order."""

import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.manifest import Manifest
from pipeline.media import Media
from pipeline.options import Batch, RunOptions
from pipeline.presets import Recipe
from pipeline.run.board import Board, Ticket
from pipeline.spec import STAGES
from pipeline.store import lease
from pipeline.store.flight import in_flight
from pipeline.store.jobs import Job, folder_of, load_job, load_jobs, remove_job
from pipeline.store.layout import init_cache
from pipeline.store.wip import LogWriter, Origin
from pipeline.store.writer import ShardBuilder, create_stage, encode_rows
from tests.specs import pipeline_spec
from tests.test_plan import ARRAY, dataset

ROOT = Path(__file__).parents[2]
ONE = np.ones(1, np.float32)
RECIPE = Recipe(pipeline_spec(), {}, RunOptions(shard_clips=10, batch=Batch(motion=4)))


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    init_cache(tmp_path / "cache")
    return tmp_path / "cache"


def board(cache: Path, table: tuple[Manifest, dict[str, Media]]) -> Board:
    return Board(cache, RECIPE, STAGES, *table)


def turn_of(ticket: Ticket | None) -> tuple[int, int]:
    assert ticket is not None
    return ticket.job, ticket.turn


def do(cache: Path, ticket: Ticket, done: Counter[str]) -> bool:
    """What a worker does with a ticket, but for the work; whether it got the job."""
    job = load_job(cache, ticket.job)
    if job is None or job.id != ticket.id:
        return False
    held = lease.take(folder_of(cache), ticket.job, ticket.turn)
    if held is None:
        return False
    with held:
        job = load_job(cache, ticket.job)
        if job is not None and job.id == ticket.id:
            for shard in job.shards:
                facts = RECIPE.spec.stages()[shard.stage].facts()
                stage = create_stage(cache, facts, shard.key, [ARRAY], 4000, {})
                builder = ShardBuilder(stage, shard.shard)
                for key in shard.clips:
                    builder.add(key, key, {"x": ONE}, {})
                    done[f"{shard.stage} {key}"] += 1
                builder.commit(held.check)
            remove_job(cache, job)
    return True


def test_groups_become_jobs_of_whole_blocks(cache: Path) -> None:
    table = dataset(25)
    mine = board(cache, table)
    tickets = [mine.take(out) for out in ((), (0,), (0, 1))]
    assert [turn_of(ticket) for ticket in tickets] == [(0, 1), (1, 1), (2, 1)]
    assert mine.take((0, 1, 2)) is None
    assert not mine.done
    jobs = load_jobs(cache)
    assert [(len(job.clips), job.blocks) for job in jobs] == [(10, (4, 4, 2)), (10, (4, 4, 2)), (5, (4, 1))]
    assert all([shard.shard for shard in job.shards] == [job.number] * 4 for job in jobs)
    assert [line["running"] for line in in_flight(cache, "test")] == [False] * 3


def test_a_board_goes_on_with_the_jobs_of_a_dead_one(cache: Path) -> None:
    table, done = dataset(25), Counter[str]()
    first = board(cache, table)
    first.take()
    second = board(cache, table)
    assert turn_of(second.take()) == (0, 1)  # nobody has a lease
    held = lease.take(folder_of(cache), 0, 1)
    assert held is not None
    ticket = second.take((0,))
    assert turn_of(ticket) == (1, 1)
    with held:
        assert turn_of(board(cache, table).take((1,))) == (2, 1)  # 0 is held
    while (ticket := second.take()) is not None:
        assert do(cache, ticket, done)
    assert second.done
    assert set(done.values()) == {1}
    assert len(done) == 4 * 25
    assert load_jobs(cache) == []


def test_a_number_is_free_when_its_lease_is(cache: Path) -> None:
    """Whoever ended job 0 strikes it off first and gives the lease back then."""
    held = lease.take(folder_of(cache), 0, 1)
    assert held is not None
    mine = board(cache, dataset(25))
    with held:
        assert turn_of(mine.take()) == (1, 1)
    assert turn_of(mine.take((1,))) == (2, 1)


def test_the_lease_of_a_dead_worker_whose_job_is_done_goes(cache: Path) -> None:
    die = "from pathlib import Path; import os, sys; from pipeline.store.lease import take; "
    die += "assert take(Path(sys.argv[1]), 3, 2); os._exit(0)"
    subprocess.run([sys.executable, "-c", die, str(folder_of(cache))], cwd=ROOT, check=True)
    assert (folder_of(cache) / "3.2.lease").exists()
    assert turn_of(board(cache, dataset(25)).take()) == (0, 1)
    assert not list(folder_of(cache).glob("3.*"))


def test_a_stale_board_plans_anew(cache: Path) -> None:
    """While it slept, another one did everything, or a part, and left no job behind."""
    table, done = dataset(25), Counter[str]()
    stale, other = board(cache, table), board(cache, table)
    ticket = other.take()
    assert ticket is not None
    do(cache, ticket, done)
    while (ticket := stale.take()) is not None:
        do(cache, ticket, done)
    assert stale.done
    assert set(done.values()) == {1}
    assert len(done) == 4 * 25
    assert board(cache, table).done


@pytest.mark.parametrize("boards", [2, 4])
def test_boards_side_by_side_give_no_clip_twice(boards: int, cache: Path) -> None:
    table, counts = dataset(80), [Counter[str]() for _ in range(boards)]
    failed: list[BaseException] = []
    begin = threading.Barrier(boards)

    def work(done: Counter[str]) -> None:
        try:
            mine = board(cache, table)
            begin.wait(30)
            while not mine.done:
                ticket = mine.take()
                if ticket is not None:
                    do(cache, ticket, done)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(done,)) for done in counts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failed == []
    total = sum(counts, Counter[str]())
    assert set(total.values()) == {1}
    assert len(total) == 4 * 80
    assert load_jobs(cache) == []


def test_a_number_is_not_used_again_while_its_result_is_on_the_way(cache: Path) -> None:
    """A crew files results by number: that of a job which is through, and removed, would take another's place."""
    mine = board(cache, dataset(30))
    first = mine.take()
    assert first is not None
    assert do(cache, first, Counter())
    second, third = mine.take((0,)), mine.take((0, 1))
    assert [turn_of(ticket)[0] for ticket in (second, third)] == [1, 2]


def test_finished_clips_of_a_log_are_counted(cache: Path) -> None:
    table = dataset(10)
    mine = board(cache, table)
    mine.take()
    (job,) = load_jobs(cache)
    log_some(cache, job, {"segment": 5, "regions": 3, "semantic": 3, "motion": 9})
    planned = mine.replan()
    assert [stage.unfinished for stage in planned.stages] == [5, 3, 3, 9]
    assert {stage.pending for stage in planned.stages} == {10}
    assert in_flight(cache, "test")[0]["logged"] == 3
    ticket = mine.take()
    assert turn_of(ticket) == (0, 2)  # above the turn of the logs


def log_some(cache: Path, job: Job, clips: dict[str, int]) -> None:
    for shard in job.shards:
        facts = RECIPE.spec.stages()[shard.stage].facts()
        stage = create_stage(cache, facts, shard.key, [ARRAY], 4000, {})
        log = LogWriter(stage.folder, 1, Origin(job.id, shard.shard, 0))
        for key in shard.clips[: clips[shard.stage]]:
            made = encode_rows(stage, {"x": ONE})
            log.add(key, key, made.n_rows, {}, made.stored)
        log.close()
