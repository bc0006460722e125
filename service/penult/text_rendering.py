"""Draw text of any script on a picture, with the fonts of this machine.

Pillow's own font has Latin letters. Other letters are drawn with the first font that has them: DejaVu, which matplotlib
brings, or one of the system's. A letter that no font has is spelled out, so that no empty box appears.
"""

import functools
import importlib.util
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import ImageDraw, ImageFont, features

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Runs = list[tuple[str, Font]]

_SUFFIXES = (".ttf", ".otf", ".ttc")
_MAX_FONTS, _MAX_LETTERS = 400, 200
# Plain faces first: these words name others.
_STYLED = re.compile(r"bold|italic|oblique|condensed|mono|light|thin|black|heavy|medium|serif|emoji", re.IGNORECASE)
# Letters whose forms depend on their neighbours: without a layout engine they come out wrong, not only ugly.
_SHAPED = ((0x0590, 0x08FF), (0x0900, 0x0DFF), (0x0F00, 0x109F), (0x1780, 0x17FF), (0xFB1D, 0xFDFF), (0xFE70, 0xFEFC))
_JOINER = "\u200d"
# Holds no letter in any font.
_NO_LETTER = "\U0010ffff"


def draw_line(
    draw: ImageDraw.ImageDraw, left: int, top: int, text: str, size: int, fill: str, width: int, keeps_end: bool = False
) -> None:
    """Draw a line of text, shortened at its end, or at its beginning, to a width in pixels."""
    lettering = _of_size(size)
    at, baseline = float(left), top + lettering.ascent
    for run, font in lettering.fitted(draw, text, width, keeps_end):
        draw.text((at, baseline), run, fill=fill, font=font, anchor="ls")
        at += draw.textlength(run, font=font)


@functools.lru_cache(maxsize=8)
def _of_size(size: int) -> "Lettering":
    return Lettering(size)


class Lettering:
    """The fonts in one size, opened as letters need them."""

    def __init__(self, size: int, others: Sequence[Path] | None = None, has_layout: bool | None = None) -> None:
        """Open no font file yet.

        Args:
            size: Size in pixels.
            others: Font files beside Pillow's own; None: those of this machine.
            has_layout: Whether Pillow has libraqm; None: find out.
        """
        self._size = size
        self._fonts: list[Font] = [ImageFont.load_default(size)]
        self._more = iter(font_files() if others is None else others)
        self._has_layout = bool(features.check("raqm")) if has_layout is None else has_layout
        self._known: dict[tuple[int, str], bool] = {}
        metrics = getattr(self._fonts[0], "getmetrics", lambda: (size, 0))()
        self.ascent = int(metrics[0])

    def fitted(self, draw: ImageDraw.ImageDraw, text: str, width: int, keeps_end: bool) -> Runs:
        """Return the runs of a line that is not wider than this many pixels."""
        parts = _clusters(unicodedata.normalize("NFC", text))
        dots = len(parts) > _MAX_LETTERS
        parts = parts[-_MAX_LETTERS:] if keeps_end else parts[:_MAX_LETTERS]
        while True:
            shown = ["…", *parts] if dots and keeps_end else [*parts, "…"] if dots else parts
            runs = self._runs(shown)
            if not parts or sum(draw.textlength(run, font=font) for run, font in runs) <= width:
                return runs
            parts, dots = (parts[1:] if keeps_end else parts[:-1]), True

    def _runs(self, clusters: Sequence[str]) -> Runs:
        runs: Runs = []
        for cluster in clusters:
            font = runs[-1][1] if runs and cluster == " " else self._font_of(cluster)
            letters = cluster
            if font is None:
                letters, font = spelled(cluster), self._fonts[0]
            if runs and runs[-1][1] is font:
                runs[-1] = (runs[-1][0] + letters, font)
            else:
                runs.append((letters, font))
        return runs

    def _font_of(self, cluster: str) -> Font | None:
        """Return the first font that has all letters of a cluster; None if none has, or libraqm is missing."""
        if not self._has_layout and any(low <= ord(c) <= high for c in cluster for low, high in _SHAPED):
            return None
        for place, font in enumerate(self._fonts):
            if all(self._has(place, letter) for letter in cluster):
                return font
        for path in self._more:
            try:
                self._fonts.append(ImageFont.truetype(path, self._size))
            except OSError:  # pictures of letters, in one size only; or no font
                continue
            place = len(self._fonts) - 1
            if all(self._has(place, letter) for letter in cluster):
                return self._fonts[place]
        return None

    def _has(self, place: int, letter: str) -> bool:
        if (place, letter) not in self._known:
            font = self._fonts[place]
            drawn = _drawn(font, letter)
            is_blank = letter.isspace() or letter == _JOINER
            self._known[place, letter] = is_blank or (bool(drawn[1].strip(b"\0")) and drawn != _drawn(font, _NO_LETTER))
        return self._known[place, letter]


def spelled(cluster: str) -> str:
    """Return letters as text that every font has: "e" for é, ":dog face:", or an escape as in JSON."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", cluster) if not unicodedata.combining(c))
    if plain.isascii() and plain.isprintable():
        return plain
    names = [unicodedata.name(letter, "") for letter in cluster if unicodedata.category(letter) == "So"]
    if names and all(names):
        return f":{' '.join(names).lower()}:"
    return "".join(c if c.isascii() and c.isprintable() else c.encode("unicode_escape").decode() for c in cluster)


def _clusters(text: str) -> list[str]:
    """Return a text in clusters: a letter with its marks, an emoji with what is joined to it."""
    found: list[str] = []
    for each in text:
        kind = unicodedata.category(each)
        letter = " " if kind in ("Cc", "Zl", "Zp") else each
        if 0xFE00 <= ord(letter) <= 0xFE0F or (kind == "Cf" and letter != _JOINER):
            continue  # they choose among forms of a letter, or the direction of writing; they are no letters
        is_joined = kind.startswith("M") or letter == _JOINER or 0x1F3FB <= ord(letter) <= 0x1F3FF
        if found and (is_joined or found[-1].endswith(_JOINER)):
            found[-1] += letter
        else:
            found.append(letter)
    return found


def _drawn(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    """Return the size and the pixels that a letter has in a font."""
    mask = font.getmask(letter, mode="L")
    return mask.size, bytes(mask)


def font_files() -> Iterator[Path]:
    """Yield the font files of matplotlib and of this machine, plain faces first; none is opened."""
    if (found := importlib.util.find_spec("matplotlib")) and found.origin:
        yield Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    home = Path("~").expanduser()
    data = [os.environ.get("XDG_DATA_HOME") or home / ".local/share"]
    data += (os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(":")
    folders = [*(Path(each) / "fonts" for each in data), home / ".fonts", home / "Library/Fonts"]
    folders += [Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    paths = [path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES]
    yield from sorted(paths, key=lambda path: (len(_STYLED.findall(path.stem)), path.name))[:_MAX_FONTS]
