"""A contact sheet: queries on the left, their neighbours on the right, nearest first, and a legend."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from penult.bundle import errors, guards, preprocess
from penult.text_rendering import draw_line

_TILE, _GAP, _CAPTION, _LEGEND = 144, 12, 34, 26
_INK, _FAINT, _PAPER, _RULE, _RIGHT, _WRONG = "#1d2733", "#6b7785", "#ffffff", "#d5dbe1", "#1b7f4d", "#b3402a"


@dataclass(frozen=True)
class Tile:
    """An image, as a path, a file's bytes, or None if it is missing, with two lines below it.

    `is_right` colours the frame. It is True if the label is the query's own, None if either is unknown.
    """

    photo: str | Path | bytes | None
    title: str
    note: str
    is_right: bool | None = None


def draw_sheet(rows: Sequence[Sequence[Tile]], path: Path) -> None:
    """Write a PNG with a row per query; the first tile of each is the query itself. Raises OSError."""
    columns = max(len(row) for row in rows)
    step, height = _TILE + _GAP, _TILE + _CAPTION + _GAP
    size = (2 * _GAP + max(columns, 2) * step + _GAP, _GAP + len(rows) * height + _LEGEND)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for line, row in enumerate(rows):
        top = _GAP + line * height
        for column, tile in enumerate(row):
            left = _GAP + column * step + (_GAP if column else 0)
            _draw_tile(sheet, draw, tile, left, top)
        rule = _GAP + step
        draw.line([(rule, top), (rule, top + _TILE)], fill=_RULE, width=2)
    _draw_legend(draw, size[1] - _LEGEND)
    sheet.save(path)


def _draw_legend(draw: ImageDraw.ImageDraw, top: int) -> None:
    """Draw the meaning of the frames; no frame is red if the query's own label is unknown."""
    left = _GAP
    for colour, text in ((_RIGHT, "the photo's label"), (_WRONG, "another label"), (None, "label not known")):
        draw.rectangle([left, top + 3, left + 10, top + 13], outline=colour or _RULE, width=3 if colour else 1)
        draw_line(draw, left + 16, top + 1, text, 11, _FAINT, _TILE)
        left += 118


def _draw_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    picture = _picture(tile.photo)
    if picture is None:
        draw.rectangle([left, top, left + _TILE, top + _TILE], fill="#eef1f4")
        draw_line(draw, left + _TILE // 2 - 38, top + _TILE // 2 - 8, "no photo kept", 12, _FAINT, _TILE)
    else:
        sheet.paste(picture, (left, top))
    if tile.is_right is not None:
        colour = _RIGHT if tile.is_right else _WRONG
        draw.rectangle([left - 2, top - 2, left + _TILE + 1, top + _TILE + 1], outline=colour, width=3)
    draw_line(draw, left, top + _TILE + 5, tile.title, 13, _INK, _TILE)
    # An id is often a path: its end says more.
    draw_line(draw, left, top + _TILE + 20, tile.note, 11, _FAINT, _TILE, keeps_end=True)


def _picture(photo: str | Path | bytes | None) -> Image.Image | None:
    if not photo:
        return None
    try:
        upright = _upright(photo if isinstance(photo, bytes) else Path(photo).read_bytes(), _TILE)
    except (OSError, errors.ImageError):
        return None
    # Small pictures are enlarged without blurring.
    resampling = Image.Resampling.NEAREST if max(upright.size) < _TILE // 2 else Image.Resampling.LANCZOS
    return ImageOps.fit(upright, (_TILE, _TILE), resampling)


def _upright(data: bytes, side: int) -> Image.Image:
    """Return an image upright, on white, in sRGB, with at least `side` pixels; raise ImageError."""
    spec = preprocess.Preprocess(resize=side, crop=side, colors=preprocess.SRGB)
    opened = preprocess.open_image(data, guards.LEARNING_LIMITS, spec)
    return Image.fromarray(preprocess.in_srgb(np.asarray(preprocess.decode_opened(opened)), opened, spec))


def thumbnail(photo: Path, side: int = 256) -> bytes:
    """Return a JPEG of a photo, its longer side at most `side` pixels; b"" if it cannot be read."""
    try:
        small = _upright(photo.read_bytes(), side)
    except (OSError, errors.ImageError):
        return b""
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
