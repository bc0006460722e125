"""`penult inspect` end to end: flipped labels come first, copies are found, and the page stands alone."""

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from penult import cli

pytestmark = pytest.mark.usefixtures("exported_once")

Penult = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two easy classes of 30 pictures: two labels are wrong, and one file is a copy."""
    folder, random = tmp_path_factory.mktemp("pictures") / "A&B shapes", np.random.default_rng(0)
    y, x = np.mgrid[:40, :40]
    for name in ("disc", "stripes"):
        (folder / name).mkdir(parents=True)
    for number in range(60):
        is_disc, middle = number % 2 == 0, random.integers(16, 24, 2)
        shape = np.hypot(x - middle[0], y - middle[1]) < 9 if is_disc else (x + middle[0]) // 3 % 2 == 0
        pixels = (60 + 130 * shape[..., None] + random.normal(0, 12, (40, 40, 3))).clip(0, 255).astype(np.uint8)
        is_wrong = number in (10, 23)
        label = "disc" if is_disc != is_wrong else "stripes"
        Image.fromarray(pixels).save(folder / label / f"{'wrong' if is_wrong else number}.png")
    (folder / "disc" / "copy.png").write_bytes((folder / "disc" / "2.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def inspected(
    pictures: Path, tiny_weights: Path, exported_once: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict, Path]:
    """The JSON answer and the folder of a run that all tests read."""
    folder, shown = tmp_path_factory.mktemp("inspected") / "out", io.StringIO()
    words = ["inspect", pictures, "--arch", "tiny5", "--weights", tiny_weights, "--out", folder, "--json"]
    with redirect_stdout(shown):
        assert cli.main([str(word) for word in words]) == 0
    return json.loads(shown.getvalue()), folder


def _rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_files(inspected: tuple[dict, Path]):
    """Wrong labels lead suspects.csv, copies are in duplicates.csv, and JSON has counts and paths."""
    found, out = inspected
    header, *suspects = _rows(out / "suspects.csv")
    assert header == ["image", "label", "suggested", "score"]
    assert {(row[0], row[1], row[2]) for row in suspects[:2]} == {
        ("disc/wrong.png", "disc", "stripes"),
        ("stripes/wrong.png", "stripes", "disc"),
    }
    assert [float(row[3]) for row in suspects] == sorted((float(row[3]) for row in suspects), reverse=True)
    header, (image, other, similarity), *near = _rows(out / "duplicates.csv")
    assert header == ["image", "other", "similarity"]
    assert ({image, other}, float(similarity)) == ({"disc/copy.png", "disc/2.png"}, 1)
    assert all(float(row[2]) < 1 for row in near)
    assert found["suspects"] == len(suspects)
    assert sum(found["photos"].values()) == 61
    assert Path(found["page"]) == out / "index.html"
    assert sorted(each.name for each in out.iterdir()) == ["duplicates.csv", "index.html", "suspects.csv"]


def test_page(inspected: tuple[dict, Path]):
    """The page loads nothing, its pictures have texts, and names are escaped."""
    page = (inspected[1] / "index.html").read_text()
    assert "A&amp;B shapes" in page
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    assert "<script" not in page
    assert len(re.findall("<img ", page)) == len(re.findall(r'<img [^>]*alt="[^"]+"', page)) > 4
    assert page.index("<bdi>disc</bdi>, or") < page.index("Classes and splits")


def test_suspects_can_be_excluded(
    inspected: tuple[dict, Path], pictures: Path, tiny_weights: Path, penult: Penult, tmp_path: Path
):
    """--exclude takes the first lines of suspects.csv, and the photos are still there afterwards."""
    out = shutil.copytree(inspected[1], tmp_path / "out")
    wrong = out / "wrong.csv"
    wrong.write_text("".join((out / "suspects.csv").read_text().splitlines(keepends=True)[:3]))
    options = ("--arch", "tiny5", "--weights", tiny_weights, "--out", out, "--exclude", wrong)
    code, text, _ = penult("inspect", pictures, *options)
    assert code == 0
    assert text.splitlines()[-3:] == [
        f"page: {(out / 'index.html').as_uri()}",
        f"suspects: {out / 'suspects.csv'}",
        f"copies: {out / 'duplicates.csv'}",
    ]
    assert "wrong.png" not in (out / "suspects.csv").read_text()
    assert (pictures / "disc" / "wrong.png").exists()


@pytest.mark.parametrize(
    ("counts", "copies", "message"),
    [({}, 0, "photos"), ({"a": 1, "b": 1, "c": 1}, 0, "too few"), ({"a": 1, "b": 5}, 4, "different")],
    ids=["empty", "one photo per class", "identical photos"],
)
def test_unusable_photos(
    counts: dict, copies: int, message: str, make_photos: Callable[..., Path], penult: Penult, tmp_path: Path
):
    """Photos that nothing can be learnt from are one line, and nothing is written."""
    photos = make_photos(tmp_path / "photos", counts)
    photos.mkdir(exist_ok=True)
    for number in range(copies):
        (photos / "a" / f"copy{number}.png").write_bytes((photos / "a" / "000.png").read_bytes())
    out = tmp_path / "out"
    code, _, error = penult("inspect", photos, "--arch", "tiny5", "--weights", "none", "--out", out)
    assert (code, error.count("\n")) == (1, 1), error
    assert message in error
    assert not out.exists()


def test_near_copies_are_left_out_together(pictures: Path, tiny_weights: Path, penult: Penult, tmp_path: Path):
    """--group-by near-duplicates joins the photos of duplicates.csv into groups."""
    options = ("--arch", "tiny5", "--weights", tiny_weights, "--out", tmp_path / "out", "--group-by", "near-duplicates")
    code, _, said = penult("inspect", pictures, *options)
    assert code == 0
    assert "groups keep" in said


def test_unwritable_folder(pictures: Path, penult: Penult, tmp_path: Path):
    """A file in the place of --out is one line."""
    (tmp_path / "out").write_text("")
    code, _, error = penult("inspect", pictures, "--arch", "tiny5", "--weights", "none", "--out", tmp_path / "out")
    assert (code, error.count("\n")) == (1, 1)
    assert "--out" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--version", "3"], "--model"), (["--model", "models/a", "--arch", "tiny5"], "no effect")],
)
def test_options_without_effect(options: list[str], message: str, pictures: Path, penult: Penult):
    """Options that contradict each other are one line."""
    code, _, error = penult("inspect", pictures, *options)
    assert (code, error.count("\n")) == (1, 1)
    assert message in error
