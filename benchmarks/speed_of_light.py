"""How near each stage comes to its bare model: throughput through the pipeline over that on resident tensors.

    python -m benchmarks.speed_of_light [--preset base] [--stages segment semantic motion] [--clips N] [--set ...]

Same batch, dtype and padded tail on both sides; the pipeline decodes files, prepares, encodes and writes shards, the
bare model gets one batch again and again. Random weights, since time does not depend on them, but for the demo's
segmenter, which makes the crops of the semantic stage. `limited_by` is the slowest of decoding alone, of everything
but the model ("feed": the same run with a model that costs nothing), and of the model alone.

Clips are intervals of the MA-52 clips under BMOE_DATA, else of demo clips enlarged to MA-52's 1080 x 1296.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.harness import Timing, arguments, import_intervals, race, ratio, report
from pipeline.cost import encoder_macs
from pipeline.decode import DecodePool
from pipeline.demo.world import plan_world, render_world
from pipeline.encoders import create_model
from pipeline.manifest import Manifest
from pipeline.media import Media, decode_job
from pipeline.plan import clip_tasks
from pipeline.presets import Recipe, load_recipe, read_preset, unweighted_spec
from pipeline.run.board import Board
from pipeline.run.build import build, plan_dataset
from pipeline.run.crew import Running
from pipeline.run.engine import NEEDS_FRAMES
from pipeline.run.worker import Worker
from pipeline.stages.work import Work

FRAMES = 44  # of a clip: 8 windows of 16 at stride 4, and a little less than MA-52's shortest
# Dense TFLOP/s of the data sheets (tensor cores for bfloat16, none for float32), by a part of the device's name.
PEAKS = {
    "H200": {"bfloat16": 989.0, "float32": 67.0},
    "H100": {"bfloat16": 989.0, "float32": 67.0},
    "A100": {"bfloat16": 312.0, "float32": 19.5},
}


def make_dataset(folder: Path, cache: Path, clips: int) -> None:
    """Import `clips` intervals of a few files as dataset "bench"; each has another content address."""
    videos = folder / "videos"
    videos.mkdir(parents=True)
    data = os.environ.get("BMOE_DATA")
    if data:
        for path in Path(data).glob("clips/ma52_*.mp4"):
            shutil.copy(path, videos)
    else:
        render_world(folder / "world", plan_world(per_class={"train": 1, "val": 0})[::4])
        for path in (folder / "world").rglob("*.mp4"):
            _enlarge(path, videos / path.name)
    files = {path.name: _frames(path) for path in sorted(videos.iterdir())}
    places = [(name, start) for start in range(200) for name, n in files.items() if start + FRAMES <= n]
    import_intervals(cache, folder, places, FRAMES, clips)


def _enlarge(source: Path, target: Path) -> None:
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 1080, 1296, "yuv420p"
        for frame in old.decode(video=0):
            new.mux(stream.encode(frame.reformat(1080, 1296)))
        new.mux(stream.encode())


def _frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def make_recipe(stage: str, preset: str, overrides: list[str], weights: Path) -> Recipe:
    """The preset with random weights for this stage; upstream of others, the demo's segmenter."""
    spec = unweighted_spec(preset, overrides)
    run = read_preset(preset, overrides).run
    own: Any = spec.stages()[stage]
    torch.manual_seed(0)
    file = weights / f"{stage}.safetensors"
    save_file(create_model(own.model, **own.config).state_dict(), file)
    files: dict[str, Path | None] = {stage: file}
    if stage != "segment":
        demo = load_recipe("demo")
        spec = spec.replaced(demo.spec.segment).replaced(demo.spec.regions)
        files |= {"segment": demo.weights["segment"]}
    return Recipe(spec, files, run)


def measure(cache: Path, recipe: Recipe, stage: str, rounds: int, workers: int) -> dict[str, Any]:
    """One stage: rows are what its model sees, one view of a window for the semantic stage."""
    if stage == "semantic":
        build(cache, "bench", recipe, ("segment", "regions"), running=Running(decoders=workers))
    plan, manifest, media = plan_dataset(cache, "bench", recipe, (stage,))
    tasks = clip_tasks(manifest, media).values()
    spec: Any = recipe.spec.stages()[stage]
    with Worker(cache, manifest.root, tasks, recipe, (stage,), workers) as worker:
        engine: Any = worker.engine
        model = engine.models[stage]

        def run() -> int:
            return _run(worker, manifest, media, stage)

        example: list[torch.Tensor] = []
        hook = model.register_forward_pre_hook(
            lambda _, inputs: example.append(inputs[0].clone()) if not example else None
        )
        rows = run()  # cold: libraries, compiler, and the batch to repeat
        hook.remove()
        bare = _bare(model, example[0], spec.precision, rows)
        light = race({"pipeline": run, "bare": bare}, rows, rounds)
        with (
            torch.inference_mode(),
            torch.autocast(engine.device.type, torch.bfloat16, spec.precision == "bfloat16"),
        ):
            kept = model(example[0], **({"tokens": True} if getattr(spec, "tokens", None) else {}))
        layout = _channels_last(model, bare, rows, rounds) if stage != "semantic" else {}
        model.forward = lambda *_, **__: kept
        feed = race({"feed": run}, rows, 1)["feed"]
        device = engine.device
    jobs = [decode_job(task.clip, manifest.root, task.key) for task in plan.groups[0].clips]
    with DecodePool(workers) as pool:
        decode = race({"decode": lambda: len(list(pool.decode(jobs)))}, len(jobs), 1)["decode"]
    parts = {"decode": decode.seconds, "feed": feed.seconds, "model": light["bare"].seconds}
    config = {**spec.config, "crop": spec.crop} if stage == "motion" else spec.config
    macs = encoder_macs(spec.model, config)
    return {
        "model": spec.model,
        "precision": spec.precision,
        "batch": len(example[0]),
        "compile": recipe.run.compile,
        "device": device.type,
        "clips": len(jobs),
        "rows": rows,
        "speed_of_light": _share(light),
        "pipeline": light["pipeline"].record(rows),
        "bare": light["bare"].record(rows),
        "seconds_alone": {name: round(seconds, 3) for name, seconds in parts.items()},
        "limited_by": max(parts, key=lambda name: parts[name]),
        "compile_seconds": round(engine.seconds["compile"], 1),
        **layout,
        **_arithmetic(macs, rows, light, spec.precision, device),
    }


def _channels_last(model: torch.nn.Module, bare: Callable[[], int], rows: int, rounds: int) -> dict[str, Any]:
    """What convolution weights in channels-last order would gain the bare model."""

    def other() -> int:
        model.to(memory_format=torch.channels_last)
        made = bare()
        model.to(memory_format=torch.contiguous_format)
        return made

    times = race({"plain": bare, "channels_last": other}, rows, rounds)
    return {"channels_last_gain": ratio(times["plain"], times["channels_last"])}


def _run(worker: Worker, manifest: Manifest, media: dict[str, Media], stage: str) -> int:
    """Compute and write the stage anew; the rows its model saw, all of which must be written."""
    folder = worker.cache / "stages" / stage
    if folder.exists():
        shutil.rmtree(folder)
    seen = clips = 0

    def count(work: Work) -> None:
        nonlocal seen
        if work.error:
            raise SystemExit(f"{work.task.clip.clip_id}: {work.error[1]}")
        arrays, _ = work.written[stage]
        seen += int(arrays["present"].sum()) if stage == "semantic" else len(next(iter(arrays.values())))

    worker.on_clip = count
    board = Board(worker.cache, worker.recipe, (stage,), manifest, media)
    while (ticket := board.take()) is not None:
        clips += worker.run_shard(ticket).clips[stage]
    if clips != len(worker.tasks):
        raise SystemExit(f"{clips} clips were written, fewer than planned")
    return seen


def _bare(model: torch.nn.Module, x: torch.Tensor, precision: str, rows: int) -> Callable[[], int]:
    """Run the model on as many batches as the pipeline needs for these rows."""

    def bare() -> int:
        with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, precision == "bfloat16"):
            for _ in range(-(-rows // len(x))):
                model(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        return rows

    return bare


def _share(light: dict[str, Timing]) -> dict[str, float]:
    shares = [b / p for b, p in zip(light["bare"].rounds, light["pipeline"].rounds, strict=True)]
    return {
        "median": round(float(np.median(shares)), 4),
        "low": round(min(shares), 4),
        "high": round(max(shares), 4),
    }


def _arithmetic(
    macs: int | None, rows: int, light: dict[str, Timing], precision: str, device: torch.device
) -> dict[str, Any]:
    """Sustained TFLOP/s of both sides, and their share of the device's peak where that is known."""
    if macs is None:
        return {}
    record: dict[str, Any] = {
        f"{side}_tflops": float(f"{2 * macs * rows / timing.seconds / 1e12:.4g}")
        for side, timing in light.items()
    }
    name = torch.cuda.get_device_name() if device.type == "cuda" else ""
    peak = next((peaks[precision] for part, peaks in PEAKS.items() if part in name), None)
    if peak:
        record["peak_tflops"] = peak
        record["share_of_peak"] = round(record["pipeline_tflops"] / peak, 3)
    return record


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--preset", default="base")
    parser.add_argument("--stages", nargs="+", choices=NEEDS_FRAMES, default=NEEDS_FRAMES)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2, help="decode processes")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", help="e.g. semantic.precision=bfloat16"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_dataset(folder / "data", folder / "cache", options.clips)
        # One group: a dataset has one padded tail in 256 clips, not one in four.
        overrides = [*options.overrides, f"run.shard_clips={options.clips}"]
        measured = {}
        for stage in options.stages:
            recipe = make_recipe(stage, options.preset, overrides, folder)
            measured[stage] = measure(folder / "cache", recipe, stage, options.rounds, options.workers)
    report("speed_of_light", {"preset": options.preset, "set": options.overrides, **measured}, options.out)


if __name__ == "__main__":
    main()
