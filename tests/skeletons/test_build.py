"""From skeleton files to the cache: the same plan, receipts, quarantine and reader as every stage, and no encoder."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.clip import clip_key
from pipeline.errors import UserError
from pipeline.events import silent
from pipeline.manifest import manifest_path, read_manifest
from pipeline.media import media_path, read_media
from pipeline.plan import clip_tasks, make_plan
from pipeline.presets import Recipe, load_recipe
from pipeline.report import describe
from pipeline.run.build import build, plan_dataset, read_files
from pipeline.run.previews import write_previews
from pipeline.store.export import export
from pipeline.store.layout import load_build
from pipeline.store.reader import Cache, StageReader
from pipeline.store.writer import write_build
from tests.decode.clips import write_video
from tests.run.worlds import bmoe, import_clips
from tests.skeletons.files import ntu_text, write_ntu, write_pku, write_ucla
from tests.specs import pipeline_spec

DATA = os.environ.get("BMOE_DATA")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("skeleton")


def stage_of(cache: Path, dataset: str) -> tuple[StageReader, dict[str, str]]:
    """The skeleton stage and clip id -> key."""
    reader = Cache(cache)
    return reader.stage("skeleton", reader.builds(dataset)["stages"]["skeleton"]), reader.clip_keys(
        dataset, "skeleton"
    )


def joints_of(stage: StageReader, key: str) -> np.ndarray:
    """float32 [frames, persons, joints, 3]."""
    return stage.read(key, "xyz").reshape(*stage.clips[key].facts["shape"], 3)


def test_sequences_of_n_ucla(tmp_path: Path, recipe: Recipe) -> None:
    root, cache = tmp_path / "root", tmp_path / "cache"
    names = [f"a{action:02d}_s01_e00_v0{view}" for action in (1, 6, 12) for view in (1, 2, 3)]
    written = {
        name: write_ucla(root / "all_sqe" / f"{name}.json", 5 + number) for number, name in enumerate(names)
    }
    import_clips(cache, root, "n_ucla")
    result = build(cache, "n_ucla", recipe)
    assert (result.computed, result.clips.done, result.clips.pending) == ({"skeleton": 9}, 9, 0)
    stage, keys = stage_of(cache, "n_ucla")
    for clip_id, key in keys.items():
        name = clip_id.split(":")[2]
        assert joints_of(stage, key)[:, 0].tobytes() == written[name].tobytes()
        assert (stage.read(key, "confidence") == 1).all()
        assert stage.clips[key].facts == {
            "shape": [len(written[name]), 1, 20], "frames": len(written[name]), "bodies": ["0"], "format": "ucla_json",
        }  # fmt: skip
    assert build(cache, "n_ucla", recipe).computed == {"skeleton": 0}
    group = zarr.open_group(next((cache / "stages/skeleton").iterdir()) / "features.zarr", mode="r")
    key = next(iter(keys.values()))
    rows = stage.clips[key]
    start = rows.shard * stage.shard_rows + rows.row_start
    array = np.asarray(group["xyz"][start : start + rows.n_rows])  # type: ignore[index]
    assert np.array_equal(array, stage.read(key, "xyz"))


def test_persons_and_damage_of_ntu(tmp_path: Path) -> None:
    """Through the command line: one, two and no bodies, a body that leaves, a file that is cut, a missing list."""
    root, cache = tmp_path / "root", tmp_path / "cache"
    folder = root / "nturgb+d_skeletons"
    one = write_ntu(folder / "S001C001P001R001A001.skeleton")
    two = write_ntu(
        folder / "S001C001P001R001A050.skeleton", bodies=("72057594037931101", "72057594037931102")
    )
    present = np.ones((6, 2), bool)
    present[3:, 1] = False
    (folder / "S001C002P001R001A050.skeleton").write_text(
        ntu_text(two, present, ["11", "12"], np.full((6, 2, 25), 1))
    )
    (folder / "S001C003P001R001A050.skeleton").write_text("2\n0\n0\n")
    cut = write_ntu(folder / "S001C001P002R001A001.skeleton")
    text = (folder / "S001C001P002R001A001.skeleton").read_text()
    (folder / "S001C001P002R001A001.skeleton").write_text(text[: len(text) // 2])
    assert len(cut) == 6
    import_clips(cache, root, "ntu60")
    done = bmoe("build", "--dataset", "ntu60", "--cache", cache, "--preset", "skeleton", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["clips"] == {"manifest": 5, "done": 3, "quarantined": 2, "pending": 0}
    report = describe(cache, "ntu60")
    codes = {line["clip_id"].split(":")[-1]: (line["stage"], line["code"]) for line in report["quarantine"]}
    assert codes == {
        "S001C001P002R001A001": ("files", "E_SKEL_TRUNCATED"),
        "S001C003P001R001A050": ("skeleton", "E_SKEL_EMPTY"),
    }
    stage, keys = stage_of(cache, "ntu60")
    found = {clip_id.split(":")[-1]: key for clip_id, key in keys.items() if key in stage.clips}
    assert np.array_equal(joints_of(stage, found["S001C001P001R001A001"]), one)
    assert np.array_equal(joints_of(stage, found["S001C001P001R001A050"]), two)
    left = found["S001C002P001R001A050"]
    assert np.array_equal(joints_of(stage, left), np.where(present[..., None, None], two, 0))
    confidence = stage.read(left, "confidence").reshape(6, 2, 25)
    assert np.array_equal(confidence, np.broadcast_to(present[..., None] * 0.5, (6, 2, 25)))
    assert stage.clips[left].facts["bodies"] == ["11", "12"]
    assert report["clips"] == {"manifest": 5, "done": 3, "quarantined": 2, "pending": 0}


def test_instances_of_a_long_pku_recording(tmp_path: Path, recipe: Recipe) -> None:
    """The clips of a recording hold what their intervals show; the second person only where there is one."""
    root, cache = tmp_path / "root", tmp_path / "cache"
    root.mkdir()
    xyz = write_pku(root / "0002-L.skeleton", 60, second_from=30)
    (root / "0002-L.label").write_text("1,0,9,2\n5,20,39,2\n9,50,80,2\n")
    (root / "cross-subject.txt").write_text("Training videos:\n0002-L\nValidation videos:\n0003-L\n")
    import_clips(cache, root, "pku_mmd")
    result = build(cache, "pku_mmd", recipe)
    assert (result.clips.done, result.clips.quarantined) == (2, 1)
    stage, keys = stage_of(cache, "pku_mmd")
    clips = {clip.start_frame: clip for clip in read_manifest(manifest_path(cache, "pku_mmd")).clips}
    for start, persons in ((0, 1), (20, 2)):
        end = clips[start].end_frame
        assert np.array_equal(joints_of(stage, keys[clips[start].clip_id]), xyz[start:end, :persons])
    assert [line["code"] for line in describe(cache, "pku_mmd")["quarantine"]] == ["E_END_PAST_EOF"]


def test_export_of_skeletons(tmp_path: Path, recipe: Recipe) -> None:
    root, cache, out = tmp_path / "root", tmp_path / "cache", tmp_path / "out"
    root.mkdir()
    xyz = write_ntu(root / "S001C001P001R001A050.skeleton", bodies=("11", "12"))
    import_clips(cache, root, "ntu60")
    build(cache, "ntu60", recipe)
    assert export(cache, "ntu60", "skeleton", "npy", out)["clips"] == 1
    ((name, entry),) = json.loads((out / "features.json").read_text())["database"].items()
    assert entry["shape"] == [6, 2, 25]
    assert np.array_equal(np.load(out / "xyz" / f"{name}.npy").reshape(*entry["shape"], 3), xyz)


def test_a_build_of_skeletons_has_no_previews(tmp_path: Path, recipe: Recipe) -> None:
    root, cache = tmp_path / "root", tmp_path / "cache"
    root.mkdir()
    write_ntu(root / "S001C001P001R001A050.skeleton")
    import_clips(cache, root, "ntu60")
    build(cache, "ntu60", recipe)
    with pytest.raises(UserError, match=r"built without the stages segment and regions.*preset of encoders"):
        write_previews(cache, "ntu60", ["any"], tmp_path / "out")


def test_skeletons_leave_the_videos_where_they_are(tmp_path: Path, recipe: Recipe) -> None:
    """A dataset with both: each stage addresses a clip by the file it reads, and builds of one kind keep the other."""
    root, cache = tmp_path / "root", tmp_path / "cache"
    root.mkdir()
    write_video(root / "S001C001P001R001A001_rgb.avi", 20, codec="mpeg4")
    write_video(root / "S001C002P001R001A001_rgb.avi", 20, codec="mpeg4", noise=True)
    import_clips(cache, root, "ntu60")
    with pytest.raises(UserError, match=r"no clip with a skeleton.*preset of encoders"):
        plan_dataset(cache, "ntu60", recipe)
    read_files(cache, read_manifest(manifest_path(cache, "ntu60")), silent)
    before = Cache(cache).clip_keys("ntu60")
    assert len(before) == 2
    write_ntu(root / "S001C001P001R001A001.skeleton")
    import_clips(cache, root, "ntu60")
    spec = pipeline_spec()
    videos = {name: stage.key for name, stage in spec.stages().items()}
    write_build(cache, "ntu60", {"preset": "test", "stages": videos})
    result = build(cache, "ntu60", recipe)
    assert (result.clips.manifest, result.clips.done) == (1, 1)
    assert Cache(cache).clip_keys("ntu60") == before
    record = load_build(cache, "ntu60")
    assert record["stages"] == {**videos, "skeleton": recipe.spec.skeleton.key}
    manifest = read_manifest(manifest_path(cache, "ntu60"))
    media = read_media(media_path(cache, "ntu60"))
    plan = make_plan(cache, manifest, media, spec, tuple(videos), 10)
    assert (plan.clips.manifest, plan.clips.pending) == (2, 2)
    for clip_id, task in clip_tasks(manifest, media).items():
        sha256 = media[task.clip.video_path or ""].sha256 or ""
        assert task.key == clip_key(task.clip, sha256) == Cache(cache).clip_keys("ntu60")[clip_id]


def test_a_preset_has_only_its_stages(recipe: Recipe) -> None:
    assert list(recipe.spec.stages()) == ["skeleton"]
    with pytest.raises(UserError, match=r"preset 'skeleton' has no stage segment; it has skeleton"):
        _ = recipe.spec.segment
    with pytest.raises(UserError, match=r"--set skeletons=3: unknown option"):
        load_recipe("skeleton", overrides=["skeletons=3"])


@pytest.mark.skipif(not DATA, reason="BMOE_DATA is unset: no real skeletons on this machine")
def test_all_of_n_ucla(tmp_path: Path, recipe: Recipe) -> None:
    root, cache = tmp_path / "root", tmp_path / "cache"
    root.mkdir()
    shutil.copy(Path(DATA or "") / "nw_ucla.npz", root)
    import_clips(cache, root, "n_ucla")
    assert build(cache, "n_ucla", recipe).clips.done == 1_484
    stage, keys = stage_of(cache, "n_ucla")
    by_name = {clip_id.split(":")[-1]: key for clip_id, key in keys.items()}
    splits = describe(cache, "n_ucla")["splits"]
    assert splits == {"train": 1_020, "test": 464}
    with np.load(root / "nw_ucla.npz") as arrays:
        xyz, offsets, names = arrays["xyz"], arrays["offsets"], arrays["name"]
    frames = 0
    for name, start, end in zip(names, offsets, offsets[1:], strict=False):
        joints = joints_of(stage, by_name[str(name)])
        assert joints.tobytes() == xyz[start:end].tobytes(), name
        frames += len(joints)
    assert frames == 58_534
