"""What becomes of files that are short, broken, or no videos at all; and of the real clips under BMOE_DATA."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.report import describe
from pipeline.store.reader import Cache
from tests.decode.clips import write_sound, write_video
from tests.run.worlds import bmoe, import_clips, receipts

DATA = os.environ.get("BMOE_DATA")

BAD = {
    "empty.mp4": "E_EMPTY_FILE",
    "text.mp4": "E_NOT_A_VIDEO",
    "half.mp4": "E_NOT_A_VIDEO",
    "sound.mp4": "E_NO_VIDEO_STREAM",
    "folder.mp4": "E_NOT_A_FILE",
    "missing.mp4": "E_MISSING_FILE",
    "tiny.mp4": "E_TOO_SMALL",
}


@pytest.fixture(scope="module")
def odd_cache(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """(cache built by the command line from good, short and bad files, its exit status)."""
    root = tmp_path_factory.mktemp("files")
    write_video(root / "good.mp4", frames=40, size=(160, 192))
    write_video(root / "short.mp4", frames=9, size=(160, 192))
    (root / "empty.mp4").touch()
    (root / "text.mp4").write_text("this is a note, not a video\n" * 40)
    whole = write_video(root / "half.mp4", frames=40, noise=True).read_bytes()
    (root / "half.mp4").write_bytes(whole[: len(whole) // 2])
    write_sound(root / "sound.mp4")
    (root / "folder.mp4").mkdir()
    write_video(root / "tiny.mp4", frames=20, size=(14, 14))
    names = ["good.mp4", "short.mp4", *BAD]
    (root / "clips.csv").write_text("video_path\n" + "".join(f"{name}\n" for name in names))
    cache = tmp_path_factory.mktemp("odd") / "cache"
    import_clips(cache, root, "odd", "csv")
    done = bmoe("build", "--dataset", "odd", "--cache", cache, "--preset", "demo", "--json")
    assert done.stderr == ""
    assert json.loads(done.stdout)["clips"]["manifest"] == len(names)
    return cache, done.returncode


def test_bad_files_are_quarantined_with_a_code_and_a_sentence(odd_cache: tuple[Path, int]) -> None:
    cache, status = odd_cache
    assert status == 0
    report = describe(cache, "odd")
    assert report["clips"] == {"manifest": 9, "done": 2, "quarantined": 7, "pending": 0}
    codes = {line["clip_id"].split(":")[-1] + ".mp4": line["code"] for line in report["quarantine"]}
    assert codes == BAD
    assert all(len(line["message"].split()) > 3 for line in report["quarantine"])


def test_short_clip_repeats_its_last_frame_and_says_so(odd_cache: tuple[Path, int]) -> None:
    cache, _ = odd_cache
    facts = {name.split(":")[-1]: value for name, value in receipts(cache, "odd", "semantic").items()}
    assert facts["short"]["frames"] == 9
    assert facts["short"]["start_frames"] == [0]
    assert facts["short"]["repeated_frames"] == 7
    assert facts["good"]["repeated_frames"] == 0


def test_clip_without_a_person_has_absent_regions(odd_cache: tuple[Path, int]) -> None:
    cache, _ = odd_cache
    reader = Cache(cache)
    stages = reader.builds("odd")["stages"]
    regions = reader.stage("regions", stages["regions"])
    for key in regions.clips:  # grey fields: whatever the segmenter sees, empty and present agree
        box, present = regions.read(key, "box"), regions.read(key, "present")
        assert ((box[..., 2:] > box[..., :2]).all(-1) == (present == 1)).all()


def test_mended_file_is_picked_up(odd_cache: tuple[Path, int], tmp_path: Path) -> None:
    root = tmp_path / "files"
    root.mkdir()
    (root / "clips.csv").write_text("video_path\nlate.mp4\n")
    cache = tmp_path / "cache"
    import_clips(cache, root, "late", "csv")
    arguments = ("build", "--dataset", "late", "--cache", cache, "--preset", "demo")
    assert bmoe(*arguments).returncode == 0
    assert describe(cache, "late")["clips"]["quarantined"] == 1
    write_video(root / "late.mp4", frames=20, size=(160, 192))
    assert bmoe(*arguments).returncode == 0
    assert describe(cache, "late")["clips"]["done"] == 1


@pytest.mark.skipif(not DATA, reason="BMOE_DATA is unset: no real clips on this machine")
def test_real_clips(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    import_clips(cache, Path(DATA or "") / "clips", "real", "folder")
    done = bmoe("build", "--dataset", "real", "--cache", cache, "--preset", "demo", "--json")
    assert done.returncode == 0, done.stderr
    report = describe(cache, "real")
    assert report["clips"] == {"manifest": 32, "done": 31, "quarantined": 1, "pending": 0}
    assert [line["code"] for line in report["quarantine"]] == ["E_TOO_SMALL"]
    facts = {name.split(":")[-1]: value for name, value in receipts(cache, "real", "motion").items()}
    assert facts["odd_corrupted"]["frames"] == 28
    assert facts["odd_corrupted"]["warnings"][0].startswith("W_DAMAGED: 28 of 50")
    expected = {"shaking_body": 75, "turning_around": 60, "nodding": 50, "shaking_head": 45}
    assert {name: facts[f"ma52_{name}"]["frames"] for name in expected} == expected
    assert all(facts[f"ma52_{name}"]["warnings"] == [] for name in expected)
    for name in ("odd_av1", "odd_h264_10bit", "odd_vp9_321x241", "odd_no_duration"):
        assert facts[name]["frames"] >= 25
    assert any("W_ROTATION" in text for text in facts["odd_rotated_90"]["warnings"])
    reader = Cache(cache)
    semantic = reader.stage("semantic", reader.builds("real")["stages"]["semantic"])
    assert all(np.isfinite(semantic.read(key, "features").astype(np.float32)).all() for key in semantic.clips)
