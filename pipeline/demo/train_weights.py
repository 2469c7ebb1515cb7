"""Train the demo encoders: tiny members of the real classes, on people and motions that no demo clip shows.

    python -m pipeline.demo.train_weights      # about 40 minutes on 2 cores; writes manifests/demo/

The segmenter learns part labels. VideoMAE-V2 learns what happens in one 16-frame view and how the joints in it move.
MANet learns the classes with its embedding loss, as the published one does on MA-52.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from heads.labels import label_vectors
from pipeline.demo.motions import ACTIONS, CHANNELS
from pipeline.demo.world import ClipPlan, render_clip
from pipeline.encoders import create_model
from pipeline.encoders.preprocess import centre_crop, normalisation, resize_short_side, to_float
from pipeline.regions import find_boxes, load_parts, region_map
from pipeline.spec import REGIONS, RegionsSpec
from pipeline.views import full_view, region_view

SEED = 710  # the demo world uses 52: no person, background or motion is shared
OUT = Path(__file__).resolve().parents[2] / "manifests" / "demo"
VIEW_SIZE, MOTION_SIZE, WINDOW = 64, 96, 16

SEGMENTER = {"embed_dim": 96, "depth": 4, "num_heads": 4, "image_size": [192, 160], "head_channels": 24}
VIDEOMAE = {"img_size": 64, "patch_size": 16, "embed_dim": 96, "depth": 4, "num_heads": 4, "num_frames": 16}
MANET = {"width": 16, "depths": [1, 1, 1, 1]}

# Which pose channels a view can show; their change, spread and mean over a window are what VideoMAE-V2 predicts.
SEEN: dict[str, tuple[str, ...]] = {
    "full": CHANNELS,
    "head": ("pitch", "yaw", "roll"),
    "body": ("root_x", "lean", "shrug_l", "shrug_r"),
    "upper_limb": ("hand_l_x", "hand_l_y", "hand_r_x", "hand_r_y", "shrug_l", "shrug_r"),
    "lower_limb": ("knee_l", "knee_r", "shin_l", "shin_r", "lift_l", "lift_r"),
}


# The actions that move a region; anywhere else the region "does nothing".
SHOWN: dict[str, tuple[str, ...]] = {
    "head": ("nodding", "shaking head", "tilting head", "touching face"),
    "body": ("shaking body", "shrugging"),
    "upper_limb": ("waving", "stretching arms", "putting hands together", "touching face", "patting legs"),
    "lower_limb": ("shaking legs", "stretching feet", "patting legs"),
}

# What make_sample stores of one clip, all at the encoders' sizes:
#   label int64 []; seg_frames uint8 [6, H, W, 3]; seg_labels uint8 [6, H, W]; views uint8 [5, F, 64, 64, 3];
#   present bool [5] (the region is there in every frame); motion uint8 [F, 96, 96, 3]; pose float32 [F, 17]
Sample = dict[str, np.ndarray]


def through_video(frames: np.ndarray) -> np.ndarray:
    """Give rendered frames the chroma subsampling of a decoded video; uint8 [F, H, W, 3]."""
    import cv2

    round_trip = [
        cv2.cvtColor(cv2.cvtColor(f, cv2.COLOR_RGB2YUV_I420), cv2.COLOR_YUV2RGB_I420) for f in frames
    ]
    return np.stack(round_trip)


def make_sample(index: int, folder: Path) -> None:
    """Render clip `index` of the training world, cut it to the encoders' inputs and store it."""
    path = folder / f"{index:05d}.npz"
    if path.exists():
        return
    torch.set_num_threads(1)
    names = list(ACTIONS)
    plan = ClipPlan(f"train_{index}", "train", names[index % len(names)], index, index, SEED)
    frames, labels, pose = render_clip(plan)
    frames = through_video(frames)
    rng = np.random.default_rng([SEED, 3, index])
    picked = rng.choice(len(frames), 6, replace=False)
    # Boxes as the pipeline finds them, but shifted by a few pixels, as a real segmenter's would be.
    parts = load_parts()
    regions = region_map(labels, parts.regions)
    spec = RegionsSpec(reads={}, parts=parts.regions, padding=float(rng.uniform(0.06, 0.15)))
    boxes = find_boxes(regions, spec)
    tensor, maps = torch.from_numpy(frames), torch.from_numpy(regions)
    crops = [region_view(tensor, maps, boxes, i, VIEW_SIZE) for i in range(len(REGIONS))]
    views = torch.stack([full_view(tensor, VIEW_SIZE), *crops]).permute(0, 1, 3, 4, 2)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(
        temporary,
        label=names.index(plan.label),
        seg_frames=frames[picked],
        seg_labels=labels[picked],
        views=views.round().to(torch.uint8).numpy(),
        present=np.concatenate([[True], boxes.present.all(0)]).astype(bool),
        motion=centre_crop(resize_short_side(frames, MOTION_SIZE), MOTION_SIZE),
        pose=np.stack([pose[name] for name in CHANNELS], 1).astype(np.float32),
    )
    temporary.rename(path)


def read_samples(folder: Path, clips: int, *names: str) -> list[Sample]:
    """The named arrays of the first `clips` clips."""
    samples = []
    for index in range(clips):
        with np.load(folder / f"{index:05d}.npz", allow_pickle=False) as file:
            samples.append({name: file[name] for name in names})
    return samples


def log(text: str) -> None:
    print(text, flush=True)


def schedule(model: nn.Module, steps: int, lr: float) -> Iterator[torch.optim.Optimizer]:
    """Yield an AdamW optimiser `steps` times under a warm-up and cosine schedule, stepping it after each yield."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        yield optimiser
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        rate.step()


def relight(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random gain and offset of every channel, per item: uint8 [B, ..., 3] -> uint8."""
    shape = (len(images), *[1] * (images.ndim - 2), 3)
    gain = 0.8 + 0.4 * torch.rand(shape, generator=generator)
    offset = 40 * torch.rand(shape, generator=generator) - 20
    shifted = (images.float() * gain + offset).clamp(0, 255)
    return torch.where(images > 0, shifted, 0).to(torch.uint8)  # masked pixels stay black


def train_segmenter(folder: Path, clips: int, steps: int, generator: torch.Generator) -> nn.Module:
    """Cross entropy at the resolution of the logits (every second pixel, which one varies); batches of 12 frames."""
    model = create_model("sapiens-seg", num_classes=28, **SEGMENTER).train()
    samples = read_samples(folder, clips, "seg_frames", "seg_labels")
    frames = torch.from_numpy(np.concatenate([s["seg_frames"] for s in samples]))
    labels = torch.from_numpy(np.concatenate([s["seg_labels"] for s in samples]))
    mean, std = normalisation("mmseg")
    # Hands and arms are few pixels and a quarter of the regions: the first cycle weighs them up so that they are
    # found at all, the second one settles the borders.
    first = steps * 3 // 5
    heavy = torch.ones(28)
    heavy[list(load_parts().regions["upper_limb"])] = 2.0
    cycles = chain(schedule(model, first, 2e-3), schedule(model, steps - first, 1e-3))
    for step, _ in enumerate(cycles):
        pick = torch.randint(len(frames), (12,), generator=generator)
        down, right = torch.randint(2, (2,), generator=generator).tolist()
        target = labels[pick][:, down::2, right::2].long()
        logits = model(to_float(relight(frames[pick], generator), mean, std))["logits"]
        loss = F.cross_entropy(logits, target, heavy if step < first else None)
        loss.backward()
        if step % 100 == 0 or step == steps - 1:
            share = (logits.argmax(1) == target).float().mean()
            log(f"segmenter {step}/{steps} loss {loss.item():.4f} pixels right {share:.4f}")
    return model


def kinematics(samples: list[Sample]) -> list[np.ndarray]:
    """For every sample float32 [F - 15, 51]: change, spread and mean of each channel over each window."""
    targets = []
    for sample in samples:
        windows = np.lib.stride_tricks.sliding_window_view(sample["pose"], WINDOW, axis=0)  # [F - 15, 17, 16]
        change = windows[..., -4:].mean(-1) - windows[..., :4].mean(-1)
        targets.append(np.concatenate([change, windows.std(-1), windows.mean(-1)], 1).astype(np.float32))
    everything = np.concatenate(targets)
    centre, scale = everything.mean(0), everything.std(0) + 1e-6
    return [(target - centre) / scale for target in targets]


def cosine_patches(dim: int) -> torch.Tensor:
    """A start for the patch embedding, [dim, 3, 2, 16, 16]: low spatial cosines of three colour axes, of the sum and
    of the difference of the two frames. From random filters the model sees no motion in its first 1,000 steps.
    """
    points = (torch.arange(16) + 0.5) / 16 * torch.pi
    waves = [torch.outer(torch.cos(i * points), torch.cos(j * points)) for i in range(4) for j in range(4)]
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, -2.0]])
    filters = []
    for times, gain in (((1.0, 1.0), 0.15), ((1.0, -1.0), 0.5)):  # differences are small: weigh them up
        for colour, more in zip(colours, (1.0, 1.5, 1.5), strict=True):
            for wave in waves:
                block = torch.einsum("c,t,hw->cthw", colour, torch.tensor(times), wave)
                filters.append(gain * more * block / block.norm())
    return torch.stack(filters)[:dim]


def train_videomae(folder: Path, clips: int, steps: int, generator: torch.Generator) -> nn.Module:
    """What happens in a view (one of the classes its region can show, or nothing): cross entropy. How the joints it
    shows move: robust regression. One head gives both; batches of 32 views of 16 frames.
    """
    moves = 3 * len(CHANNELS)
    model = create_model("videomaev2", num_classes=moves + len(ACTIONS) + 1, **VIDEOMAE).train()
    with torch.no_grad():
        model.patch_embed.proj.weight.copy_(cosine_patches(VIDEOMAE["embed_dim"]))  # type: ignore[union-attr, operator]
        model.patch_embed.proj.bias.zero_()  # type: ignore[union-attr, operator]
    samples = read_samples(folder, clips, "views", "present", "pose", "label")
    targets = kinematics(samples)
    views = list(SEEN)
    seen = torch.tensor([[name in SEEN[view] for name in CHANNELS] for view in views]).repeat(1, 3)
    mean, std = normalisation("imagenet")
    rng = np.random.default_rng([SEED, 4])
    running = np.zeros(3)
    for step, _ in enumerate(schedule(model, steps, 1.5e-3)):
        windows: list[np.ndarray] = []
        kinds: list[int] = []
        wanted: list[np.ndarray] = []
        labels: list[int] = []
        while len(windows) < 32:
            sample_id, view = int(rng.integers(len(samples))), int(rng.integers(len(views)))
            sample = samples[sample_id]
            if not sample["present"][view]:
                continue
            places = len(targets[sample_id])
            start = int(rng.integers(places // 8, places - places // 8))  # an action begins and ends at rest
            windows.append(sample["views"][view, start : start + WINDOW])
            kinds.append(view)
            wanted.append(targets[sample_id][start])
            labels.append(shown_class(views[view], int(sample["label"])))
        images = relight(torch.from_numpy(np.stack(windows)), generator)
        answer = model(to_float(images, mean, std).transpose(1, 2))["logits"]
        error = F.smooth_l1_loss(answer[:, :moves], torch.from_numpy(np.stack(wanted)), reduction="none")
        shown, truth = seen[kinds], torch.tensor(labels)
        regression = (error * shown).sum() / shown.sum()
        entropy = F.cross_entropy(answer[:, moves:], truth)
        (regression + 0.5 * entropy).backward()
        right = (answer[:, moves:].argmax(1) == truth).float().mean()
        now = np.array([regression.item(), entropy.item(), right.item()])
        running = now if step == 0 else 0.98 * running + 0.02 * now
        if step % 100 == 0 or step == steps - 1:
            log(
                f"videomaev2 {step}/{steps} moves {running[0]:.4f} classes {running[1]:.4f} right {running[2]:.3f}"
            )
    return model


def shown_class(view: str, label: int) -> int:
    """The class as far as a view shows it: its own id, or len(ACTIONS) where its region does nothing."""
    return label if view == "full" or list(ACTIONS)[label] in SHOWN[view] else len(ACTIONS)


def train_manet(folder: Path, clips: int, steps: int, generator: torch.Generator) -> nn.Module:
    """CE + 5 x mean squared embedding error; batches of 16 clips of 8 randomly placed frames.

    MANet itself weighs the embedding 50 times. This small net then learned the mean label vector and no class at all
    in 500 steps.
    """
    model = create_model("manet", num_classes=len(ACTIONS), **MANET).train()
    samples = read_samples(folder, clips, "motion", "label")
    vectors = torch.from_numpy(label_vectors(list(ACTIONS)).vectors)
    mean, std = normalisation("imagenet")
    rng = np.random.default_rng([SEED, 5])
    running = 0.0
    for step, _ in enumerate(schedule(model, steps, 2e-3)):
        pieces, labels = [], []
        for sample_id in rng.integers(0, len(samples), 16):
            sample = samples[sample_id]
            part = len(sample["motion"]) / 8
            picked = sample["motion"][((np.arange(8) + rng.random(8)) * part).astype(int)]
            pieces.append(picked[:, :, ::-1] if rng.random() < 0.5 else picked)
            labels.append(int(sample["label"]))
        images = relight(torch.from_numpy(np.stack(pieces)), generator)
        out = model(to_float(images, mean, std))
        target = torch.tensor(labels)
        loss = F.cross_entropy(out["logits"], target) + 5 * F.mse_loss(out["embedding"], vectors[target])
        loss.backward()
        right = (out["logits"].argmax(1) == target).float().mean().item()
        running = right if step == 0 else 0.98 * running + 0.02 * right
        if step % 50 == 0 or step == steps - 1:
            log(f"manet {step}/{steps} loss {loss.item():.3f} right {running:.3f}")
    return model


def save(model: nn.Module, path: Path) -> None:
    """float16 safetensors: half the size; every loader casts up to float32."""
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in model.eval().state_dict().items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(path), metadata={"format": "pt"})


TRAINERS = {"segmenter": train_segmenter, "videomaev2": train_videomae, "manet": train_manet}


def train_one(name: str, folder: Path, clips: int, steps: int, out: Path) -> dict[str, int]:
    """Train and save one encoder on one thread; returns what the card says of it."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    begin = time.time()
    model = TRAINERS[name](folder, clips, steps, torch.Generator().manual_seed(SEED))
    save(model, out / f"{name}.safetensors")
    parameters = sum(p.numel() for p in model.parameters())
    return {"steps": steps, "seconds": round(time.time() - begin), "parameters": parameters}


def main() -> None:
    """Render, train the encoders side by side (one thread each: nothing waits at a barrier), write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--work", type=Path, default=Path("build/demo-weights"), help="rendered clips, 11 GB")
    parser.add_argument("--clips", type=int, default=1800)
    parser.add_argument("--only", choices=list(TRAINERS), nargs="*", default=list(TRAINERS))
    parser.add_argument("--steps", type=int, nargs=3, default=[5200, 2400, 1100])
    options = parser.parse_args()
    for folder in (options.out, options.work):
        folder.mkdir(parents=True, exist_ok=True)
    started = time.time()
    path = options.out / "training.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        list(pool.map(make_sample, range(options.clips), [options.work] * options.clips, chunksize=20))
        log(f"rendered {options.clips} clips in {time.time() - started:.0f} s")
        record |= {"seed": SEED, "clips": options.clips, "torch": torch.__version__,
                   "machine": f"{platform.machine()}, {os.cpu_count()} cores"}  # fmt: skip
        jobs = {
            name: pool.submit(train_one, name, options.work, options.clips, steps, options.out)
            for name, steps in zip(TRAINERS, options.steps, strict=True)
            if name in options.only
        }
        for name, job in jobs.items():
            record[name] = job.result()
            log(f"{name}: {record[name]}")
    record["minutes"] = round((time.time() - started) / 60, 1)
    path.write_text(json.dumps(record, indent=1) + "\n")
    log(f"total {record['minutes']} minutes")


if __name__ == "__main__":
    main()
