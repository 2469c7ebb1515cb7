"""One picture per clip: its frames, the part labels over them, and the four region crops over time."""

import colorsys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.decode.pool import Pictures
from pipeline.regions import Boxes
from pipeline.spec import REGIONS

COLUMNS = 8  # frames shown, evenly spread over the clip
CELL = 168  # pixels, the longer side of a shown frame
MARGIN, LABEL, HEAD = 10, 92, 34
INK, PAPER, QUIET = (28, 28, 32), (250, 250, 248), (120, 120, 126)
REGION_COLOURS = {
    "head": (214, 90, 70),
    "body": (88, 140, 214),
    "upper_limb": (234, 172, 60),
    "lower_limb": (96, 168, 104),
}


def part_colours() -> np.ndarray:
    """uint8 [256, 3]: black for the background, then well separated hues, the same for a class id of any list."""
    table = np.zeros((256, 3), np.uint8)
    for i in range(1, len(table)):
        r, g, b = colorsys.hsv_to_rgb((i * 0.381966) % 1, 0.65 + 0.3 * (i % 2), 0.95 - 0.2 * (i % 3) / 2)
        table[i] = int(255 * r), int(255 * g), int(255 * b)
    return table


def shown_frames(count: int) -> np.ndarray:
    """The frames of a clip that a picture shows, evenly spread: int64 [n]."""
    return np.unique(np.linspace(0, count - 1, COLUMNS).round().astype(np.int64))


def draw_preview(
    title: str,
    frames: Pictures,
    shown: np.ndarray,
    labels: np.ndarray,
    boxes: Boxes,
    maps: np.ndarray | None,
    notes: str = "",
) -> Image.Image:
    """Compose the picture.

    Args:
        frames: uint8 [F, H, W, 3].
        shown: [n], the frames to show, one column each; see shown_frames.
        labels: uint8 [n, h, w] part labels of the shown frames, the clothing rule applied.
        boxes: of the shown frames.
        maps: uint8 [n, h, w] region maps of the shown frames, or None where crops are not masked.
    """
    _, height, width, _ = frames.shape
    scale = CELL / max(height, width)
    cell = (max(round(width * scale), 1), max(round(height * scale), 1))
    rows: list[tuple[str, list[Image.Image | None]]] = []
    pictures = [Image.fromarray(frames[i]) for i in shown]
    framed = [_with_boxes(p.resize(cell), boxes, i) for i, p in enumerate(pictures)]
    rows.append(("frames", [*framed]))
    colours = part_colours()
    overlay = []
    for picture, label in zip(pictures, labels, strict=True):
        paint = Image.fromarray(colours[label]).resize(cell, Image.Resampling.NEAREST)
        alpha = Image.fromarray(np.where(label > 0, 165, 0).astype(np.uint8)).resize(cell)
        overlay.append(Image.composite(paint, picture.resize(cell).convert("L").convert("RGB"), alpha))
    rows.append(("parts", [*overlay]))
    for index, region in enumerate(REGIONS):
        crops = [
            _crop(picture, None if maps is None else maps[i], boxes, i, index)
            for i, picture in enumerate(pictures)
        ]
        rows.append((region.replace("_", " "), [*crops]))
    return _sheet(title, notes, rows, shown, cell)


def _with_boxes(picture: Image.Image, boxes: Boxes, frame: int) -> Image.Image:
    draw = ImageDraw.Draw(picture)
    for index, region in enumerate(REGIONS):
        if boxes.present[frame, index]:
            x1, y1, x2, y2 = boxes.box[frame, index] * np.array([*picture.size, *picture.size])
            draw.rectangle(
                [x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)], outline=REGION_COLOURS[region], width=2
            )
    return picture


def _crop(
    picture: Image.Image, regions: np.ndarray | None, boxes: Boxes, frame: int, index: int
) -> Image.Image | None:
    """The region as the encoder sees it (before squashing): cropped, other pixels black; None when absent."""
    if not boxes.present[frame, index]:
        return None
    x1, y1, x2, y2 = boxes.box[frame, index] * np.array([*picture.size, *picture.size])
    area = (int(x1), int(y1), max(int(np.ceil(x2)), int(x1) + 1), max(int(np.ceil(y2)), int(y1) + 1))
    crop = picture.crop(area)
    if regions is not None:
        kept = Image.fromarray(np.where(regions == index + 1, 255, 0).astype(np.uint8))
        mask = kept.resize(picture.size, Image.Resampling.NEAREST).crop(area)
        crop = Image.composite(crop, Image.new("RGB", crop.size), mask)
    limit = CELL * 0.62
    scale = limit / max(crop.size)
    return crop.resize((max(round(crop.width * scale), 1), max(round(crop.height * scale), 1)))


def _sheet(
    title: str,
    notes: str,
    rows: list[tuple[str, list[Image.Image | None]]],
    shown: np.ndarray,
    cell: tuple[int, int],
) -> Image.Image:
    heights = [max([p.height for p in pictures if p is not None], default=24) for _, pictures in rows]
    widths = max(cell[0], *(p.width for _, pictures in rows for p in pictures if p is not None))
    step = widths + MARGIN
    sheet = Image.new(
        "RGB",
        (LABEL + step * len(shown) + MARGIN, HEAD + sum(heights) + (len(rows) + 2) * MARGIN + 14),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    small, large = ImageFont.load_default(11), ImageFont.load_default(15)
    draw.text((MARGIN, MARGIN), title, INK, large)
    draw.text((sheet.width - MARGIN, MARGIN + 3), notes, QUIET, small, anchor="ra")
    y = HEAD
    for column, frame in enumerate(shown):
        draw.text((LABEL + column * step + widths / 2, y), str(frame), QUIET, small, anchor="ma")
    y += 14 + MARGIN // 2
    for (name, pictures), height in zip(rows, heights, strict=True):
        colour = REGION_COLOURS.get(name.replace(" ", "_"), INK)
        draw.text((MARGIN, y + height / 2), name, colour, small, anchor="lm")
        for column, picture in enumerate(pictures):
            centre = LABEL + column * step + widths // 2
            if picture is None:
                draw.text((centre, y + height / 2), "absent", QUIET, small, anchor="mm")
            else:
                sheet.paste(picture, (centre - picture.width // 2, y + (height - picture.height) // 2))
        y += height + MARGIN
    return sheet


def save_preview(picture: Image.Image, folder: Path, clip_id: str) -> Path:
    """Write the PNG; the file is named after the clip, with ':' and '/' made harmless."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in clip_id)
    path = folder / f"{name}.png"
    picture.save(path)
    return path
