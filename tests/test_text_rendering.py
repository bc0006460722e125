"""Letters of every script on contact sheets and in tables: drawn with a font that has them, or spelled out."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from penult.console import columns_of, print_table
from penult.text_rendering import Lettering, draw_line, font_files, spelled

DEJAVU = Path(importlib.util.find_spec("matplotlib").origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
TEXTS = ["glass", "猫と犬 日本語", "قطة كبيرة", "עברית", "Ελλάδα Привет", "cafe\u0301", "🐶 👩‍🔬 ❤️", "हिन्दी", "ไทย",
         "\U000f0000\ud800", "a\nb\x1b[31m\u202ec", "e\u0301" * 300, "x" * 5000, "", "…"]  # fmt: skip


@pytest.fixture
def draw() -> ImageDraw.ImageDraw:
    """Something to draw on."""
    return ImageDraw.Draw(Image.new("RGB", (400, 40), "white"))


@pytest.mark.parametrize("others", [None, [DEJAVU], []], ids=["this machine", "DejaVu", "none"])
@pytest.mark.parametrize("has_layout", [True, False])
def test_no_letter_is_an_empty_box(draw, others, has_layout):
    """Whatever the fonts, each letter is drawn by one that has it, and no line is wider than it may be."""
    lettering = Lettering(13, others, has_layout)
    for text in TEXTS:
        for keeps_end in (False, True):
            runs = lettering.fitted(draw, text, 144, keeps_end)
            for run, font in runs:
                place = lettering._fonts.index(font)
                assert all(lettering._has(place, letter) for letter in run), (text, run)
            assert sum(draw.textlength(run, font=font) for run, font in runs) <= 144


def text_of(
    lettering: Lettering, draw: ImageDraw.ImageDraw, text: str, width: int = 400, keeps_end: bool = False
) -> str:
    """The letters that are drawn."""
    return "".join(run for run, _ in lettering.fitted(draw, text, width, keeps_end))


def test_fonts_are_found_for_letters(draw):
    """Greek is DejaVu's where that is all there is; without a layout engine Arabic is spelled out, for it is shaped."""
    assert text_of(Lettering(13, [DEJAVU], True), draw, "Ελλάδα قط") == "Ελλάδα قط"
    assert text_of(Lettering(13, [DEJAVU], False), draw, "Ελλάδα قط") == r"Ελλάδα \u0642\u0637"
    assert text_of(Lettering(13, [], True), draw, "猫 cat") == r"\u732b cat"
    assert DEJAVU in list(font_files())


@pytest.mark.parametrize(("letters", "told"), [("é", "e"), ("ﬁ", "fi"), ("🐶", ":dog face:"), ("猫", r"\u732b"), ("\ud800", r"\ud800")])  # fmt: skip
def test_what_no_font_has_is_spelled_out(letters, told):
    """Without its accents, by its name, or as an escape."""
    assert spelled(letters) == told


def test_long_lines_are_shortened(draw):
    """At the end, or at the beginning; marks stay with their letter."""
    lettering = Lettering(13, [], True)
    assert text_of(lettering, draw, "0.93  " + "label" * 20, 100).startswith("0.93  label")
    assert text_of(lettering, draw, "folder" * 20 + "/photo.jpg", 100, keeps_end=True).endswith("/photo.jpg")
    for keeps_end in (False, True):
        cut = text_of(lettering, draw, "x\u0323" * 50, 100, keeps_end).strip("…")
        assert cut == "x" * len(cut) or cut.startswith("x\u0323")


def test_lines_stand_where_they_should():
    """Letters are drawn to the right of and below their corner, on one base line whichever the font."""
    image = Image.new("RGB", (300, 40), "white")
    draw_line(ImageDraw.Draw(image), 20, 10, "abc Ελλάδα", 13, "#000000", 200)
    rows, columns = np.nonzero(np.asarray(image.convert("L")) < 128)
    assert (rows.min() >= 10, rows.max() <= 28, columns.min() >= 20, columns.max() < 220) == (True,) * 4


def test_tables_stand_in_columns(capsys):
    """Wide letters take two columns, marks none; what moves the cursor is escaped; empty columns are left out."""
    print_table(
        ["image", "label", "note"], [["猫.jpg", "cat", ""], ["e\u0301.jpg", "dog", ""], ["a\n\x1b[2J\udcff", "x", ""]]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["image", "label"]
    assert lines[3].startswith(r"a\n\x1b[2J\udcff")
    words = zip(lines, ("label", "cat", "dog", "x"), strict=True)
    assert len({columns_of(line[: line.rindex(word)]) for line, word in words}) == 1
