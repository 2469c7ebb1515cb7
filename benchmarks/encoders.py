"""Our encoders against the plain published way of running them, end to end from files, with the same outputs.

    python -m benchmarks.encoders [--parts decode decode_long tiny manet base] [--clips N] [--data FOLDER] [--out]

The published way (VideoMAE-V2's feature script, MANet's test loop): batch 1, float32, every window read through
decord's get_batch. Ours is the engine of `bmoe-cache build`, one decode pass for all windows. Windows of 16 frames
at stride 4, the full frame only. Random weights: time does not depend on them.

Part `decode` compares only the frames: windows read one by one, or cut from one pass of the decode pool. Every
window begins at a key frame again, so the ratio grows with the length of the clip; `decode_long` is a clip of 300
frames of 640 x 360 made for it.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from benchmarks.decord_windows import Windows
from benchmarks.harness import arguments, race, ratio, report
from pipeline.decode import DecodeJob, DecodePool
from pipeline.demo.world import plan_world, render_world
from pipeline.encoders import create_model
from pipeline.encoders.preprocess import manet_indices, normalisation
from pipeline.manifest import Clip
from pipeline.options import Batch, RunOptions
from pipeline.plan import ClipTask, Group
from pipeline.presets import Recipe, unweighted_spec
from pipeline.run.engine import Engine, pick_device

WINDOW, STRIDE = 16, 4
WORKERS = 2  # decode processes of a build, by default; part `decode` is also measured with one
PARTS = ("decode", "decode_long", "tiny", "manet", "base")
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("videomaev2", {"img_size": 64, "embed_dim": 96, "depth": 4, "num_heads": 4, "num_classes": 0}),
    "base": ("videomaev2-base", {}),
    "manet": ("manet", {}),
}
SAME = 0.9999  # smallest cosine between an output of ours and the published one


def starts(frames: int) -> range:
    """First frames of the windows of a clip."""
    return range(0, max(frames - WINDOW, 0) + 1, STRIDE)


def find_clips(folder: Path | None, count: int, scratch: Path) -> list[Path]:
    """The MA-52 clips of a folder of real clips, else clips of the demo world."""
    if folder is not None:
        found = sorted((folder / "clips").glob("ma52_*.mp4"))
    else:
        render_world(scratch / "world", plan_world(per_class={"train": 1, "val": 0})[:count])
        found = sorted((scratch / "world").rglob("*.mp4"))
    if len(found) < count:
        raise SystemExit(f"{len(found)} clips found, {count} wanted; lower --clips")
    return found[:count]


def write_long_clip(path: Path) -> Path:
    """300 frames of 640 x 360, H.264 with x264's usual 250 frames between key frames: a grainy picture that moves."""
    rng = np.random.default_rng(0)
    picture = cv2.GaussianBlur(rng.integers(0, 256, (480, 960, 3), dtype=np.uint8), (0, 0), 3)
    picture = cv2.normalize(picture, picture, 0, 255, cv2.NORM_MINMAX)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for i in range(300):
            top, left = int(60 + 50 * np.sin(i / 9)), i
            frame = picture[top : top + 360, left : left + 640] // 2 + rng.integers(
                0, 64, (360, 640, 3), dtype=np.uint8
            )
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def compare_decoding(paths: Sequence[Path], windows: Windows, rounds: int) -> dict[str, Any]:
    """Seconds for the frames of all windows of all clips."""

    def published() -> int:
        made = 0
        for path in paths:
            for start in starts(windows.count(path)):
                made += len(windows.get(np.arange(start, start + WINDOW))) == WINDOW
        return made

    def ours(pool: DecodePool) -> int:
        made = 0
        for _, clip in pool.decode(DecodeJob(str(path), path) for path in paths):
            assert not isinstance(clip, Exception)
            for start in starts(len(clip.array)):
                made += len(clip.array[start : start + WINDOW]) == WINDOW
        return made

    with DecodePool(1) as one, DecodePool(WORKERS) as some:
        contenders = {"published": published, "ours": lambda: ours(one), "ours_parallel": lambda: ours(some)}
        count = ours(one)
        times = race(contenders, count, rounds)
    parallel = ratio(times["published"], times["ours_parallel"])
    return _result(times, count, "windows") | {"workers": WORKERS, "ratio_parallel": parallel}


def compare_encoder(
    part: str, paths: Sequence[Path], windows: Windows, rounds: int, scratch: Path, precision: str
) -> dict[str, Any]:
    """Seconds from files to features, and the smallest cosine between the two sides' features."""
    name, config = MODELS[part]
    torch.manual_seed(0)
    model = create_model(name, **config).eval().requires_grad_(False)
    weights = scratch / f"{part}.safetensors"
    save_file(model.state_dict(), weights)
    device = pick_device()
    model.to(device)
    stage = "motion" if part == "manet" else "semantic"
    loop = published_manet if part == "manet" else published_videomae
    kept: dict[str, np.ndarray] = {}

    def published() -> int:
        kept["published"] = loop(paths, windows, model, device)
        return len(kept["published"])

    count = len(paths) if part == "manet" else sum(len(starts(windows.count(path))) for path in paths)
    recipe = _recipe(stage, name, config, weights, precision, _even_batch(count))
    tasks = tuple(
        ClipTask(str(i), Clip(str(i), "bench", path.name), windows.count(path))
        for i, path in enumerate(paths)
    )
    group = Group(tasks, {stage: frozenset(task.key for task in tasks)})
    with Engine(scratch, paths[0].parent, recipe, (stage,)) as engine:

        def ours() -> int:
            made = [work.written[stage][0]["features"] for work in engine.stream(group)]
            kept["ours"] = np.concatenate([rows.reshape(-1, rows.shape[-1]) for rows in made])
            return len(kept["ours"])

        times = race({"published": published, "ours": ours}, ours(), rounds)
    a, b = kept["published"].astype(np.float64), kept["ours"].astype(np.float64)
    cosine = float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())
    if precision == "float32" and cosine < SAME:
        raise SystemExit(f"{part}: features differ (smallest cosine {cosine:.6f}); the times mean nothing")
    unit = "segments" if part == "manet" else "windows"
    return _result(times, len(a), unit) | {"smallest_cosine": round(cosine, 7), "device": device.type}


def published_videomae(
    paths: Sequence[Path], windows: Windows, model: torch.nn.Module, device: torch.device
) -> np.ndarray:
    """Features of every window of every clip, one window after the other: float32 [windows, D]."""
    size = model.input_shape[-1]  # type: ignore[index]
    features = []
    for path in paths:
        for start in starts(windows.count(path)):
            frames = torch.from_numpy(np.array(windows.get(np.arange(start, start + WINDOW)))).to(device)
            x = frames.permute(0, 3, 1, 2).float() / 255
            x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
            with torch.no_grad():
                features.append(model(x.transpose(0, 1)[None])["features"].cpu().numpy())
    return np.concatenate(features)


def published_manet(
    paths: Sequence[Path], windows: Windows, model: torch.nn.Module, device: torch.device
) -> np.ndarray:
    """Features of the 8 segments of every clip, one clip after the other: float32 [8 * clips, 2048]."""
    mean, std = (np.array(numbers, np.float32) for numbers in normalisation("imagenet"))
    features = []
    for path in paths:
        images = []
        for frame in windows.get(manet_indices(windows.count(path))):
            scale = 256 / min(frame.shape[:2])
            height, width = (int(side * scale + 0.5) for side in frame.shape[:2])
            resized = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
            top, left = (height - 224) // 2, (width - 224) // 2
            images.append((resized[top : top + 224, left : left + 224].astype(np.float32) - mean) / std)
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().to(device)
        with torch.no_grad():
            features.append(model(x[None])["segment_features"][0].cpu().numpy())
    return np.concatenate(features)


def _even_batch(count: int) -> int:
    """At most 16, and such that the padded tail of so few rows weighs as little as that of a whole dataset."""
    return -(-count // -(-count // 16))


def _recipe(
    stage: str, name: str, config: dict[str, Any], weights: Path, precision: str, batch: int
) -> Recipe:
    """The base preset with this encoder, the full frame only, scaled as the published script does."""
    spec = unweighted_spec("base")
    if stage == "motion":
        spec = spec.replaced(replace(spec.motion, model=name, config=config, precision=precision))
    else:
        plain = replace(spec.semantic, views=("full",), normalisation="none", precision=precision)
        spec = spec.replaced(replace(plain, model=name, config=config))
    return Recipe(spec, {stage: weights}, RunOptions(batch=Batch(semantic=batch, motion=batch)))


def _result(times: dict[str, Any], count: int, unit: str) -> dict[str, Any]:
    sides = {name: timing.record(count) for name, timing in times.items()}
    return {unit: count, "ratio": ratio(times["published"], times["ours"]), **sides}


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("BMOE_DATA"), help="real clips; default demo world"
    )
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of our side")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Windows() as windows:
        scratch = Path(folder)
        paths = find_clips(options.data, options.clips, scratch)
        measured = {}
        for part in options.parts:
            if part in MODELS:
                measured[part] = compare_encoder(
                    part, paths, windows, options.rounds, scratch, options.precision
                )
            else:
                chosen = paths if part == "decode" else [write_long_clip(scratch / "long.mp4")]
                measured[part] = compare_decoding(chosen, windows, options.rounds)
    names = [path.name for path in paths]
    report("encoders", {"clips": names, "precision": options.precision, **measured}, options.out)


if __name__ == "__main__":
    main()
