"""What is to be done next, among all builds that work on a cache: unfinished jobs first, then new ones.

A board belongs to the process that plans. It hands out tickets; whoever gets one calls `Worker.run_shard` with it, in
this process or in another. What it knows it reads from the cache, so it may die and another may go on.
"""

import random
import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.manifest import Manifest
from pipeline.media import Media, media_path, write_media
from pipeline.plan import Group, Plan, make_plan, shard_rows
from pipeline.presets import Recipe
from pipeline.store import lease
from pipeline.store.jobs import (
    Job,
    JobShard,
    create_job,
    folder_of,
    free_number,
    is_committed,
    job_path,
    leases_without_job,
    load_jobs,
    next_turn,
    remove_job,
    taken,
)

CLAIM = "claim"  # the lease of the one build that plans its next job
SKELETON_BLOCK = 64  # clips; skeletons are packed into no batches, so a block is only what a kill may cost


@dataclass(frozen=True)
class Ticket:
    """Leave to take over a job for a turn; to be sent to another process. `id` is the job's: numbers are used again."""

    job: int
    turn: int
    id: str


class Board:
    """Plans a build anew whenever the last plan is used up or another build has claimed clips.

    Attributes:
        plan: the last one.
    """

    def __init__(
        self,
        cache: Path,
        recipe: Recipe,
        stages: Collection[str],
        manifest: Manifest,
        media: Mapping[str, Media],
    ) -> None:
        self.cache, self.recipe, self.stages = cache, recipe, tuple(stages)
        self.manifest, self.media = manifest, dict(media)
        specs = recipe.spec.stages()
        self._keys = {name: specs[name].key for name in self.stages}
        self._watch = lease.Watch()
        self._known: set[tuple[str, int]] = set()
        self.plan = self.replan()

    def replan(self) -> Plan:
        """Plan with what the cache holds now."""
        # Before the plan reads it: what another build does from here on is noticed when a group is claimed.
        jobs = load_jobs(self.cache)
        self._known = taken(self.cache, jobs, self._keys)
        if any(self._is_over(job) for job in jobs):  # its worker was killed just before it removed it
            with self._alone():
                for job in filter(self._is_over, load_jobs(self.cache)):
                    remove_job(self.cache, job)
        for path in leases_without_job(self.cache):
            if not self._watch.alive(path):  # its worker was killed just before it gave it back
                path.unlink(missing_ok=True)
        self.plan = make_plan(
            self.cache, self.manifest, self.media, self.recipe.spec, self.stages, self.recipe.run.shard_clips
        )
        self._jobs, self._groups = list(self.plan.jobs), list(self.plan.groups)
        return self.plan

    @property
    def done(self) -> bool:
        """Whether the last plan had nothing to do, here or in another build."""
        return not self.plan.jobs and not self.plan.groups

    def take(self, out: Collection[int] = ()) -> Ticket | None:
        """The next job that nobody works on; None when there is none just now.

        Then either everything is `done`, or jobs are `out` (handed out by this board and not finished), or
        other builds hold them: wait a moment and ask again, for they may die.
        """
        fresh = False
        while True:
            while self._jobs:
                job = self._jobs.pop(0)
                turn = next_turn(self.cache, job)  # before the look at the lease: a later one is another's
                if job.number not in out and not self._watch.held(folder_of(self.cache), job.number):
                    return Ticket(job.number, turn, job.id)
            if self._groups:
                ticket = self._claim(self._groups.pop(0), out)
                if ticket is not None:
                    return ticket
                time.sleep(random.uniform(0, 0.05))
            elif fresh:
                return None
            self.replan()
            fresh = True

    def file_is_gone(self, path: str, code: str, reason: str) -> None:
        """Note that a file of the dataset cannot be read any more; the next build looks again."""
        self.media[path] = self.media[path]._replace(code=code, error=reason)
        write_media(media_path(self.cache, self.manifest.dataset), self.media)

    def _claim(self, group: Group, out: Collection[int]) -> Ticket | None:
        """Make a job of a group; None when another build changed the cache since the plan: plan anew.

        The number of a finished job is free again in the cache, but not while its result is still on the way.
        """
        with self._alone() as held:
            world = taken(self.cache, load_jobs(self.cache), self._keys)
            if not world <= self._known:
                return None
            job = self._job_of(group, free_number(self.cache, out), world)
            turn = next_turn(self.cache, job)  # before others see the job: a later one may be above theirs
            if not create_job(self.cache, job):
                return None
            try:
                held.check()
            except lease.LeaseLostError:
                # Frozen until another build took over: that one has not seen this job.
                job_path(self.cache, job.number).unlink(missing_ok=True)
                return None
        self._known = world | {(shard.stage, shard.shard) for shard in job.shards}
        return Ticket(job.number, turn, job.id)

    def _alone(self) -> lease.Lease:
        """The lease under which jobs are written and struck off: between a look at the cache and a job nobody comes."""
        folder = folder_of(self.cache)
        while True:
            found = lease.turns(folder, CLAIM)
            newest = found[max(found)] if found else None
            # One that is gone by now was given back, and its turn is free again; only the dead are followed.
            if newest is None or (not self._watch.alive(newest) and newest.exists()):
                held = lease.take(folder, CLAIM, max(found, default=0) + 1)
                if held is not None:
                    return held
            time.sleep(random.uniform(0, 0.02))

    def _is_over(self, job: Job) -> bool:
        """Whether all shards of a job are committed, and nobody is about to remove it."""
        return all(is_committed(self.cache, shard) for shard in job.shards) and not self._watch.held(
            folder_of(self.cache), job.number
        )

    def _job_of(self, group: Group, number: int, world: Collection[tuple[str, int]]) -> Job:
        keys = tuple(task.key for task in group.clips)
        shards = tuple(
            JobShard(
                name,
                self._keys[name],
                max((shard for stage, shard in world if stage == name), default=-1) + 1,
                tuple(key for key in keys if key in group.missing[name]),
                shard_rows(self.recipe.spec, name, self.plan.groups),
            )
            for name in self.stages
            if name in group.missing
        )
        size = block_clips(self.recipe)
        blocks = tuple(min(size, len(keys) - start) for start in range(0, len(keys), size))
        return Job(number, secrets.token_hex(8), self.manifest.dataset, keys, blocks, shards)


def block_clips(recipe: Recipe) -> int:
    """Clips that are lost together by a kill: a batch of the stage that has one row a clip."""
    return recipe.run.batch.motion if recipe.spec.source == "video" else SKELETON_BLOCK
