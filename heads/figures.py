"""Charts as PNG, drawn with Pillow: a heat map, paired bars."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT = ImageFont.load_default(13)
INK, PALE = (30, 30, 30), (205, 205, 205)
COLOURS = ((31, 98, 168), (222, 122, 34), (60, 140, 60), (160, 60, 140), (110, 110, 110))
LIGHT, DARK = np.array([247, 250, 253]), np.array([8, 62, 124])  # of a heat map, from 0 to its maximum


def heat_map(
    path: Path, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str = ""
) -> None:
    """values [rows, columns] >= 0, each with its number; white is 0, dark the largest."""
    left, cell, height = _widest(rows) + 12, max(64, _widest(columns) + 12), 20
    picture, draw = _sheet(left + cell * len(columns) + 8, height * (len(rows) + 2) + 8, title)
    top = values.max() or 1.0
    for c, name in enumerate(columns):
        draw.text((left + cell * c + cell // 2, height + 10), name, INK, FONT, anchor="mm")
    for r, name in enumerate(rows):
        y = height * (r + 2)
        draw.text((left - 6, y + height // 2), name, INK, FONT, anchor="rm")
        for c in range(len(columns)):
            share = values[r, c] / top
            colour = tuple(int(v) for v in LIGHT + (DARK - LIGHT) * share)
            box = (left + cell * c, y, left + cell * (c + 1) - 2, y + height - 2)
            draw.rectangle(box, fill=colour)
            ink = (255, 255, 255) if share > 0.55 else INK
            draw.text((box[0] + cell // 2, y + height // 2), f"{values[r, c]:.2f}", ink, FONT, anchor="mm")
    picture.save(path)


def bars(path: Path, rows: Sequence[str], series: Mapping[str, Sequence[float]], title: str = "") -> None:
    """One bar per series and row, in shares of 1, with its percent."""
    left, length, thick = _widest(rows) + 12, 360, 14
    height = thick * len(series) + 10
    picture, draw = _sheet(left + length + 70, 44 + height * len(rows), title)
    x = left
    for name, colour in zip(series, COLOURS, strict=False):
        draw.rectangle((x, 24, x + 10, 34), fill=colour)
        draw.text((x + 16, 29), name, INK, FONT, anchor="lm")
        x += 30 + _widest([name])
    for r, row in enumerate(rows):
        y = 42 + height * r
        draw.text((left - 6, y + (height - 10) / 2), row, INK, FONT, anchor="rm")
        for (_, values), colour in zip(series.items(), COLOURS, strict=False):
            draw.rectangle((left, y, left + length * values[r], y + thick - 3), fill=colour)
            text = f"{100 * values[r]:.1f}"
            draw.text((left + length * values[r] + 5, y + thick / 2 - 1), text, INK, FONT, anchor="lm")
            y += thick
    picture.save(path)


def _sheet(width: int, height: int, title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (max(width, _widest([title]) + 20), height), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((10, 11), title, INK, FONT, anchor="lm")
    return picture, draw


def _widest(texts: Sequence[str]) -> int:
    return max((int(FONT.getlength(text)) for text in texts), default=0)
