"""Draw a class map over its photo: orange where a place counts for the class, blue where against.

Below the drawing stand the class, its score and a colour scale with numbers. The photo turns grey, so that every colour
in the picture is a contribution. Orange and blue differ for colour-blind people, too.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from penult.bundle.class_map import Area, ClassMap
from penult.bundle.preprocess import Pixels
from penult.bundle.scores import Floats
from penult.text_rendering import draw_line

# Of the colour scale: for the class, and against it.
WARM, COOL = (235, 96, 0), (0, 105, 210)
# How much colour covers the photo where a contribution is largest, and how fast it grows: small ones stay visible.
_COVER, _GROWTH = 0.65, 0.8
# The photo's greys between these, so that colours show on black and on white.
_DARKEST, _LIGHTEST = 40, 225
# Outside of the area that the network saw.
_DIMMED = 0.4
_LONGEST_PIXELS, _SHORTEST_PIXELS = 1024, 384
_FOOT_PIXELS, _MARGIN, _BAR_PIXELS, _TEXT_PIXELS, _SMALL_PIXELS = 78, 10, 12, 16, 13
_MIN_WIDTH = 320
_INK, _FAINT, _PAPER = "#1d2733", "#4e5966", "#ffffff"


def limit_of(values: Floats) -> float:
    """Return the largest absolute value of a map, the end of its colour scale; 1 if all are 0."""
    largest = float(np.abs(values).max(initial=0.0))
    return largest if np.isfinite(largest) and largest > 0 else 1.0


def draw_map(photo: Pixels, drawn: ClassMap, limit: float | None = None) -> Pixels:
    """Draw a class map over its photo, with class, score and scale below.

    Args:
        photo: The whole upright photo, uint8 [H, W, 3].
        drawn: The map; its area is in pixels of the photo.
        limit: The contribution at the ends of the colour scale; None takes the largest of the map. Maps that are
            compared need the same one.

    Returns:
        uint8 [H', W', 3]. Large photos are shrunk and small ones enlarged, so that the text is readable.
    """
    end = limit or limit_of(drawn.values)
    picture = Image.fromarray(blend(photo, drawn, end))
    width = max(picture.width, _MIN_WIDTH)
    sheet = Image.new("RGB", (width, picture.height + _FOOT_PIXELS), _PAPER)
    sheet.paste(picture, ((width - picture.width) // 2, 0))
    _draw_foot(sheet, picture.height, end, drawn)
    return np.asarray(sheet)


def save(drawing: Pixels, path: Path) -> None:
    """Write a drawing as a picture, in the format of its suffix; raise OSError or ValueError."""
    Image.fromarray(drawing).save(path)


def blend(
    photo: Pixels, drawn: ClassMap, limit: float, longest: int = _LONGEST_PIXELS, shortest: int = _SHORTEST_PIXELS
) -> Pixels:
    """Return the photo in grey with the map in colour over its area, uint8 [H', W', 3].

    Args:
        photo: The whole upright photo, uint8 [H, W, 3].
        drawn: The map.
        limit: The contribution with the fullest colour.
        longest: The longer side is at most so many pixels.
        shortest: The longer side is at least so many pixels.
    """
    image = Image.fromarray(photo)
    longer = max(image.size)
    scale = min(longest / longer, max(1.0, shortest / longer))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    grey = _DARKEST + grey * ((_LIGHTEST - _DARKEST) / 255)
    across, down = size[0] / image.width, size[1] / image.height
    left, top, right, bottom = _pixels(drawn.area, across, down, size)
    whole = np.repeat((_DIMMED * grey)[:, :, None], 3, axis=2)
    inside = np.repeat(grey[top:bottom, left:right, None], 3, axis=2)
    colour, cover = colours(enlarged(drawn.values, right - left, bottom - top) / limit)
    whole[top:bottom, left:right] = inside + (colour - inside) * cover[:, :, None]
    return whole.round().astype(np.uint8)


def colours(shares: Floats) -> tuple[Floats, Floats]:
    """Return the colour [h, w, 3] of shares of the limit, and its opacity [h, w], 0 to 1."""
    warm, cool = np.array(WARM, np.float32), np.array(COOL, np.float32)
    cover: Floats = np.float32(_COVER) * np.minimum(np.abs(shares), 1.0) ** np.float32(_GROWTH)
    return np.where(shares[:, :, None] >= 0, warm, cool).astype(np.float32), cover


def enlarged(values: Floats, width: int, height: int) -> Floats:
    """Return a map [h, w] as float32 [height, width]: each place's value in its middle, smooth between them."""
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    # Smoother filters swing to the other side of zero beside a large value, which would show a contribution.
    found: NDArray[np.float32] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return found


def _pixels(area: Area, across: float, down: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return an area in pixels of a resized photo: inside of it, and at least one pixel."""
    left, right = (min(max(round(at * across), 0), size[0]) for at in (area[0], area[2]))
    top, bottom = (min(max(round(at * down), 0), size[1]) for at in (area[1], area[3]))
    left, top = min(left, size[0] - 1), min(top, size[1] - 1)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _draw_foot(sheet: Image.Image, top: int, limit: float, drawn: ClassMap) -> None:
    """Draw the text and the scale below a picture that ends at `top`."""
    draw, room = ImageDraw.Draw(sheet), sheet.width - 2 * _MARGIN
    draw_line(draw, _MARGIN, top + 4, f"{drawn.label}: score {drawn.score:.2f}", _TEXT_PIXELS, _INK, room)
    at = top + 4 + _TEXT_PIXELS + 10
    wide = min(room, 480)
    shares = np.linspace(-1, 1, wide, dtype=np.float32)[None, :].repeat(_BAR_PIXELS, axis=0)
    colour, cover = colours(shares)
    # On the grey that the middle of a photo has.
    bar = 190 + (colour - 190) * cover[:, :, None]
    sheet.paste(Image.fromarray(bar.round().astype(np.uint8)), (_MARGIN, at))
    below = at + _BAR_PIXELS + 2
    note = f"contribution per place; sum {drawn.score - drawn.offset:+.2f}, offset {drawn.offset:+.2f}"
    ends = (f"{-limit:.2g} against it", "0", f"for the class {limit:+.2g}")
    for text, share in zip(ends, (0.0, 0.5, 1.0), strict=True):
        length = round(draw.textlength(text, font_size=_SMALL_PIXELS))
        draw_line(draw, _MARGIN + round(share * (wide - length)), below, text, _SMALL_PIXELS, _FAINT, room)
    draw_line(draw, _MARGIN, below + _SMALL_PIXELS + 2, note, _SMALL_PIXELS, _FAINT, room)
