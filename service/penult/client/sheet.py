"""A contact sheet: queries down the left, each with its neighbours to the right, nearest first."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from penult.bundle import errors, preprocess

_TILE, _GAP, _CAPTION = 144, 12, 34
_INK, _FAINT, _PAPER, _RIGHT, _WRONG = "#1d2733", "#6b7785", "#ffffff", "#1b7f4d", "#b3402a"


@dataclass(frozen=True)
class Tile:
    """A photo as a path or a file's bytes, None where it cannot be had; two lines below it."""

    photo: str | Path | bytes | None
    title: str
    note: str
    is_right: bool | None = None  # frames the tile: the same label as the query's, another, or nothing to compare


def draw_sheet(rows: Sequence[Sequence[Tile]], path: Path) -> None:
    """Write a PNG with a row per query; the first tile of each is the query itself. Raises OSError."""
    columns = max(len(row) for row in rows)
    step, height = _TILE + _GAP, _TILE + _CAPTION + _GAP
    sheet = Image.new("RGB", (2 * _GAP + columns * step + _GAP, _GAP + len(rows) * height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for line, row in enumerate(rows):
        top = _GAP + line * height
        for column, tile in enumerate(row):
            left = _GAP + column * step + (_GAP if column else 0)
            _draw_tile(sheet, draw, tile, left, top)
        rule = _GAP + step
        draw.line([(rule, top), (rule, top + _TILE)], fill="#d5dbe1", width=2)
    sheet.save(path)


def _draw_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    picture = _picture(tile.photo)
    if picture is None:
        draw.rectangle([left, top, left + _TILE, top + _TILE], fill="#eef1f4")
        draw.text((left + _TILE // 2, top + _TILE // 2), "no photo kept", fill=_FAINT, font=_font(12), anchor="mm")
    else:
        sheet.paste(picture, (left, top))
    if tile.is_right is not None:
        colour = _RIGHT if tile.is_right else _WRONG
        draw.rectangle([left - 2, top - 2, left + _TILE + 1, top + _TILE + 1], outline=colour, width=3)
    draw.text((left, top + _TILE + 5), _cut(draw, tile.title, 13), fill=_INK, font=_font(13))
    draw.text((left, top + _TILE + 20), _cut(draw, tile.note, 11), fill=_FAINT, font=_font(11))


def _picture(photo: str | Path | bytes | None) -> Image.Image | None:
    if not photo:
        return None
    try:
        upright = _upright(photo if isinstance(photo, bytes) else Path(photo).read_bytes(), _TILE)
    except (OSError, errors.ImageError):
        return None
    # Small pictures grow by whole pixels: blurring would hide what is there.
    how = Image.Resampling.NEAREST if max(upright.size) < _TILE // 2 else Image.Resampling.LANCZOS
    return ImageOps.fit(upright, (_TILE, _TILE), how)


def _upright(data: bytes, side: int) -> Image.Image:
    """Return a photo as the service sees it, upright and on white, large enough for `side` pixels; raise ImageError."""
    return preprocess.decode(data, spec=preprocess.Preprocess(resize=side, crop=side))


def thumbnail(photo: Path, side: int = 256) -> bytes:
    """Return a JPEG of a photo, its longer side at most `side` pixels; b"" where it cannot be read."""
    try:
        small = _upright(photo.read_bytes(), side)
    except (OSError, errors.ImageError):
        return b""
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _cut(draw: ImageDraw.ImageDraw, text: str, size: int) -> str:
    """Return a line that fits below a tile, its end kept, for ids are often paths."""
    if draw.textlength(text, font=_font(size)) <= _TILE:
        return text
    while text and draw.textlength("…" + text, font=_font(size)) > _TILE:
        text = text[1:]
    return "…" + text
