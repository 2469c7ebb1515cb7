"""The demo world: 360 seeded clips of 12 micro-actions with ground-truth part labels, as a user would find them.

Folder written: videos/*.mp4 (30 fps H.264), parts/*.npz (labels uint8 [F, H, W], Sapiens class ids), clips.csv
(the table `dataset import demo` reads) and world.json, written last: it marks the folder complete.
"""

import csv
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipeline.demo.motions import Pose

VERSION = 1
SEED = 52
CLIPS_PER_CLASS = {"train": 20, "val": 10}
CLIPS_PER_PERSON = 6  # 40 people in train, 20 other people in val


@dataclass(frozen=True)
class ClipPlan:
    """What decides one clip; equal plans render equal pixels."""

    name: str
    split: str
    label: str
    person: int
    index: int
    seed: int = SEED


def plan_world(seed: int = SEED, per_class: dict[str, int] | None = None) -> list[ClipPlan]:
    """The clips of a world. People of val never appear in train; each person performs several classes."""
    from pipeline.demo.motions import ACTIONS

    plans: list[ClipPlan] = []
    first_person = 0
    for split, count in (per_class or CLIPS_PER_CLASS).items():
        total = count * len(ACTIONS)
        people = -(-total // CLIPS_PER_PERSON)
        for i in range(total):
            # i % 12 walks through the classes while the person changes every 6 clips: classes mix within people.
            index = len(plans)
            label = list(ACTIONS)[i % len(ACTIONS)]
            person = first_person + i // CLIPS_PER_PERSON
            plans.append(ClipPlan(f"{split}_{index:04d}", split, label, person, index, seed))
        first_person += people
    return plans


def render_clip(plan: ClipPlan) -> tuple[np.ndarray, np.ndarray, "Pose"]:
    """(frames uint8 [F, H, W, 3] RGB, labels uint8 [F, H, W], pose channels [F]) of one clip, 40 to 75 frames."""
    from pipeline.demo.motions import SHOWS_LEGS, perform
    from pipeline.demo.people import make_person
    from pipeline.demo.render import draw, make_scene

    person = make_person(np.random.default_rng([plan.seed, 1, plan.person]))
    rng = np.random.default_rng([plan.seed, 2, plan.index])
    n = int(rng.integers(40, 76))
    scene = make_scene(rng, n, may_hide_legs=plan.label not in SHOWS_LEGS)
    pose = perform(plan.label, rng, n)
    drawn = [draw(person, scene, pose, t) for t in range(n)]
    return np.stack([frame for frame, _ in drawn]), np.stack([labels for _, labels in drawn]), pose


def write_video(path: Path, frames: np.ndarray, fps: int = 30) -> None:
    """Write uint8 [F, H, W, 3] RGB as H.264 in MP4 (yuv420p, crf 18, one thread: the same bytes every time)."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18", "preset": "veryfast", "threads": "1"}
        for frame in frames:
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
            )
        container.mux(stream.encode())


def _render_files(plan: ClipPlan, root: Path) -> None:
    frames, labels, _ = render_clip(plan)
    np.savez_compressed(root / "parts" / f"{plan.name}.npz", labels=labels)
    write_video(root / "videos" / f"{plan.name}.mp4", frames)


def render_world(
    root: Path, plans: list[ClipPlan] | None = None, on_progress: Callable[[int, int], None] | None = None
) -> int:
    """Render the clips of `plans` (default: the demo world) into root; returns how many were drawn.

    A finished world with the same plans is left as it is (0 drawn).
    """
    plans = plan_world() if plans is None else plans
    marker = root / "world.json"
    facts = {"version": VERSION, "clips": [asdict(plan) for plan in plans]}
    if marker.exists() and json.loads(marker.read_text()) == facts:
        return 0
    for folder in ("videos", "parts"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_render_files, plan, root) for plan in plans]
        for done, job in enumerate(jobs, 1):
            job.result()
            if on_progress:
                on_progress(done, len(plans))
    with (root / "clips.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["video_path", "label", "split", "subject_id"])
        for plan in plans:
            table.writerow([f"videos/{plan.name}.mp4", plan.label, plan.split, f"person{plan.person:03d}"])
    marker.write_text(json.dumps(facts))
    return len(plans)


def true_parts(root: Path, video_path: str) -> np.ndarray | None:
    """Ground-truth labels uint8 [F, H, W] of a clip of the demo world; None when there is no sidecar."""
    sidecar = root / "parts" / (Path(video_path).stem + ".npz")
    if not sidecar.is_file():
        return None
    with np.load(sidecar, allow_pickle=False) as file:
        return np.asarray(file["labels"])
