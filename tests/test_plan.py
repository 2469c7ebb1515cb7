import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ClipError
from pipeline.manifest import Clip, Manifest
from pipeline.media import Media
from pipeline.plan import changes, make_plan, rows_of, shard_rows, stage_rows
from pipeline.presets import FOLDER, load_recipe
from pipeline.spec import STAGES, PipelineSpec
from pipeline.store.layout import ArraySpec, init_cache
from pipeline.store.records import QuarantineEntry
from pipeline.store.writer import ShardBuilder, create_stage, write_build
from pipeline.taxonomy import from_labels
from tests.specs import pipeline_spec

ARRAY = ArraySpec("x", "float32", (), 1, "raw")


def dataset(count: int, frames: int = 40) -> tuple[Manifest, dict[str, Media]]:
    clips = tuple(Clip(f"clip{i:05d}", "test", f"v/{i}.mp4") for i in range(count))
    media = {
        clip.media_path: Media(clip.media_path, 10, 0, f"{i:064x}", frames) for i, clip in enumerate(clips)
    }
    return Manifest("test", Path("/nowhere"), from_labels("test", ["a"], "single"), clips), media


def plan_of(cache: Path, manifest: Manifest, media: dict[str, Media], spec: PipelineSpec, shard: int = 10):  # type: ignore[no-untyped-def]
    return make_plan(cache, manifest, media, spec, STAGES, shard)


def commit(cache: Path, spec: PipelineSpec, plan, stages: tuple[str, ...] = STAGES) -> None:  # type: ignore[no-untyped-def]
    """Pretend to compute: rows of ones for every clip of every group."""
    for name in stages:
        chosen = spec.stages()[name]
        stage = create_stage(
            cache, chosen.facts(), chosen.key, [ARRAY], shard_rows(spec, name, plan.groups), {}
        )
        for group in plan.groups:
            builder = ShardBuilder(stage, stage.next_shard)
            for task in group.clips:
                if task.key in group.missing.get(name, ()):
                    n = stage_rows(spec, name, task.frames)
                    builder.add(task.key, task.clip.clip_id, {"x": np.ones(n, np.float32)}, {})
            builder.commit()
    write_build(cache, "test", {"preset": "test", "stages": {n: s.key for n, s in spec.stages().items()}})


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the disk: plans are what is tested here."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    init_cache(tmp_path / "cache")
    return tmp_path / "cache"


def states(plan) -> dict[str, str]:  # type: ignore[no-untyped-def]
    return {stage.stage: stage.state for stage in plan.stages}


def test_rows_of_each_stage() -> None:
    spec = pipeline_spec(stride=2)  # semantic: windows of 16, stride 8
    assert [rows_of(spec.segment, f) for f in (1, 2, 3, 75)] == [1, 1, 2, 38]
    assert [rows_of(spec.semantic, f) for f in (1, 16, 23, 24, 75)] == [1, 1, 1, 2, 8]
    assert rows_of(spec.motion, 75) == 1
    assert stage_rows(spec, "regions", 75) == 38


def test_empty_cache_is_missing_and_grouped(cache: Path) -> None:
    manifest, media = dataset(25)
    plan = plan_of(cache, manifest, media, pipeline_spec())
    assert states(plan) == dict.fromkeys(STAGES, "missing")
    assert [len(group.clips) for group in plan.groups] == [10, 10, 5]
    assert plan.clips.pending == 25


def test_built_cache_is_fresh(cache: Path) -> None:
    manifest, media = dataset(25)
    spec = pipeline_spec()
    commit(cache, spec, plan_of(cache, manifest, media, spec))
    plan = plan_of(cache, manifest, media, spec)
    assert states(plan) == dict.fromkeys(STAGES, "fresh")
    assert plan.groups == ()
    assert plan.clips.done == 25


def test_one_percent_new_clips_are_one_percent_of_the_work(cache: Path) -> None:
    manifest, media = dataset(200)
    spec = pipeline_spec()
    whole = plan_of(cache, manifest, media, spec, 50)
    commit(cache, spec, whole)
    manifest, media = dataset(202)
    plan = plan_of(cache, manifest, media, spec, 50)
    assert states(plan) == dict.fromkeys(STAGES, "partial")
    assert [task.clip.clip_id for group in plan.groups for task in group.clips] == ["clip00200", "clip00201"]
    assert all(stage.why == "2 clips new" for stage in plan.stages)
    assert [100 * stage.rows for stage in plan.stages] == [stage.rows for stage in whole.stages]


def test_renamed_and_relabelled_clips_recompute_nothing(cache: Path) -> None:
    manifest, media = dataset(5)
    spec = pipeline_spec()
    commit(cache, spec, plan_of(cache, manifest, media, spec))
    moved = tuple(
        Clip("other" + clip.clip_id, "test", "new/" + clip.media_path, split="val") for clip in manifest.clips
    )
    renamed = {
        f"new/{path}": Media(f"new/{path}", 10, 99, file.sha256, file.n_frames)
        for path, file in media.items()
    }
    plan = plan_of(cache, Manifest("test", manifest.root, manifest.taxonomy, moved), renamed, spec)
    assert plan.groups == ()
    assert plan.clips.done == 5


def test_region_option_leaves_segment_and_motion(cache: Path) -> None:
    manifest, media = dataset(12)
    spec = pipeline_spec()
    commit(cache, spec, plan_of(cache, manifest, media, spec))
    plan = plan_of(cache, manifest, media, pipeline_spec(padding=0.15))
    assert states(plan) == {"segment": "fresh", "regions": "stale", "semantic": "stale", "motion": "fresh"}
    why = {stage.stage: stage.why for stage in plan.stages}
    assert why["regions"] == "region padding 0.10 -> 0.15"
    assert why["semantic"] == "the regions stage it reads changed"
    assert all(set(group.missing) == {"regions", "semantic"} for group in plan.groups)


def test_a_comment_changes_nothing(cache: Path, tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text((FOLDER / "demo.yaml").read_text())
    before = load_recipe(str(preset)).spec
    preset.write_text("# why\n" + preset.read_text().replace("\n", "  # because\n"))
    assert load_recipe(str(preset)).spec.stages() == before.stages()
    manifest, media = dataset(3)
    commit(cache, before, plan_of(cache, manifest, media, before))
    assert plan_of(cache, manifest, media, load_recipe(str(preset)).spec).groups == ()


def test_changed_weights_are_named() -> None:
    old, new = pipeline_spec().segment.facts(), pipeline_spec(segment_weights="d" * 64).segment.facts()
    assert changes(old, new) == ["weights digest changed"]
    assert changes(old, old) == []


def test_reasons_in_words() -> None:
    facts = {
        "stage": "semantic",
        "version": 1,
        "stride": 4,
        "tokens": None,
        "mean": (0.5, 1e-7),
        "config": {"depth": 2},
    }
    other = {**facts, "stride": 16, "tokens": {"grid": [2, 2]}, "mean": [0.5, 1e-6], "config": {"depth": 12}}
    assert changes(facts, other) == [
        "semantic config.depth 2 -> 12",
        "semantic mean [0.5, 1e-07] -> [0.5, 1e-06]",
        "semantic stride 4 -> 16",
        "semantic tokens.grid None -> [2, 2]",
    ]
    assert changes({**facts, "share": 0.1}, {**facts, "share": 0.25}) == ["semantic share 0.10 -> 0.25"]


def test_new_and_unfinished_clips_are_told_apart(cache: Path) -> None:
    manifest, media = dataset(20)
    spec = pipeline_spec()
    commit(cache, spec, plan_of(cache, manifest, media, spec))
    manifest, media = dataset(23)
    later = plan_of(cache, manifest, media, spec)
    commit(cache, spec, later, ("segment", "regions"))
    manifest, media = dataset(24)
    why = {stage.stage: stage.why for stage in plan_of(cache, manifest, media, spec).stages}
    assert why["segment"] == "1 clip new"
    assert why["motion"] == "1 clip new, 3 clips unfinished"


def test_planning_imports_no_torch() -> None:
    command = [sys.executable, "-c", "import sys, pipeline.report; sys.exit('torch' in sys.modules)"]
    assert subprocess.run(command, cwd=Path(__file__).parents[1]).returncode == 0


def plan_after_refusal(cache: Path, name: str, failed: str, error: ClipError):  # type: ignore[no-untyped-def]
    """(key of the second of three clips, the plan) once a stage has that clip in quarantine, for `failed`."""
    manifest, media = dataset(3)
    spec = pipeline_spec()
    chosen = spec.stages()[name]
    stage = create_stage(cache, chosen.facts(), chosen.key, [ARRAY], 60, {})
    key = plan_of(cache, manifest, media, spec).groups[0].clips[1].key
    stage.add_quarantine(QuarantineEntry.of(key, "clip00001", failed, error))
    return key, plan_of(cache, manifest, media, spec)


def test_quarantined_clip_is_not_tried_again_downstream(cache: Path) -> None:
    _, plan = plan_after_refusal(cache, "segment", "decode", ClipError("E_DECODE", "no frames"))
    assert [task.clip.clip_id for task in plan.groups[0].clips] == ["clip00000", "clip00002"]
    assert (plan.clips.quarantined, plan.clips.pending) == (1, 2)


def test_what_a_stage_refused_is_tried_by_those_that_do_not_read_it(cache: Path) -> None:
    key, plan = plan_after_refusal(cache, "motion", "motion", ClipError("E_NON_FINITE", "NaN"))
    missing = {name: key in keys for name, keys in plan.groups[0].missing.items()}
    assert missing == {"segment": True, "regions": True, "semantic": True, "motion": False}
    pending = {line.stage: (line.pending, line.quarantined) for line in plan.stages}
    assert (pending["semantic"], pending["motion"]) == ((3, 0), (2, 1))


def test_unreadable_file_counts_as_quarantined(cache: Path) -> None:
    manifest, media = dataset(3)
    media["v/1.mp4"] = Media("v/1.mp4", 0, 0, code="E_EMPTY_FILE", error="0 bytes")
    plan = plan_of(cache, manifest, media, pipeline_spec())
    assert (plan.clips.manifest, plan.clips.quarantined, plan.clips.pending) == (3, 1, 2)


def test_equal_files_are_computed_once(cache: Path) -> None:
    manifest, media = dataset(4)
    media = {path: Media(path, 10, 0, "f" * 64, 40) for path in media}
    spec = pipeline_spec()
    plan = plan_of(cache, manifest, media, spec)
    assert sum(len(group.clips) for group in plan.groups) == 1
    commit(cache, spec, plan)
    assert plan_of(cache, manifest, media, spec).clips.done == 4


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=30),
    st.lists(st.integers(1, 90), max_size=30),
    st.integers(1, 8),
)
def test_no_group_outgrows_a_shard(
    tmp_path_factory: pytest.TempPathFactory, first: list[int], later: list[int], shard: int
) -> None:
    cache = tmp_path_factory.mktemp("cache") / "c"
    init_cache(cache)
    spec = pipeline_spec()
    lengths = first
    manifest, media = dataset(len(first))
    for i, (path, n) in enumerate(zip(list(media), lengths, strict=True)):
        media[path] = Media(path, 10, 0, f"{i:064x}", n)
    plan = plan_of(cache, manifest, media, spec, shard)
    rows = {name: shard_rows(spec, name, plan.groups) for name in STAGES}
    commit(cache, spec, plan)
    lengths = first + later
    manifest, _ = dataset(len(lengths))
    media = {
        clip.media_path: Media(clip.media_path, 10, 0, f"{i:064x}", n)
        for i, (clip, n) in enumerate(zip(manifest.clips, lengths, strict=True))
    }
    plan = plan_of(cache, manifest, media, spec, shard)
    planned = [task.key for group in plan.groups for task in group.clips]
    assert len(planned) == len(set(planned)) == len(later)
    for group in plan.groups:
        assert len(group.clips) <= shard
        for name in group.missing:
            total = sum(stage_rows(spec, name, task.frames) for task in group.clips)
            assert total <= rows[name] or len(group.clips) == 1
