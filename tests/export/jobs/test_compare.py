"""`penult compare` end to end, on versions of the digits whose answers are known to differ."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penult.export
from penult import cli
from penult.bundle.goldens import Goldens
from penult.bundle.manifest import GOLDEN_NAME, FileEntry
from penult.bundle.preprocess import crop_encoded
from penult.bundle.reader import Bundle, read_bundle
from penult.bundle.writer import publish
from penult.export.errors import SettingsError
from penult.export.onnx.runtime import ExportedModel
from penult.service.models.svm.scorer import load_scorer

Penult = Callable[..., tuple[int, str, str]]
# Version 2 answers 3 for 8 and 8 for 3. Version 3 knows no 9, and a class "nine" instead. Version 4 sees less of a photo.
SWAPPED, RENAMED, OTHER_CROP = 2, 3, 4


@pytest.fixture(scope="module")
def versions(copy_model: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model with three more versions of the same network."""
    model = copy_model(tmp_path_factory.mktemp("compared"))
    first = read_bundle(model, 1)
    for old, new in (("38", "83"), ("9", ("nine",))):
        names = dict(zip(old, new, strict=True))
        _publish(model, first, classes=tuple(names.get(name, name) for name in first.manifest.classes))
    spec, assert_svm = replace(first.manifest.preprocess, resize=40), first.svm
    assert assert_svm is not None
    crops = np.stack([crop_encoded(image, spec) for image in first.goldens.images])
    logits, descriptors = ExportedModel(first.onnx, first.manifest).run(crops)
    scores = load_scorer(assert_svm, first.manifest.descriptor_length, 10)(descriptors)
    goldens = Goldens(first.goldens.images, crops, logits, descriptors, scores).to_bytes()
    _publish(model, first, {GOLDEN_NAME: goldens}, preprocess=spec)
    return model


def _publish(model: Path, first: Bundle, files: dict[str, bytes] | None = None, **changes: Any) -> None:
    contents = {name: (model / "1" / name).read_bytes() for name in first.manifest.files} | (files or {})
    entries = {name: FileEntry.of(data) for name, data in contents.items()}
    publish(model, replace(first.manifest, files=entries, **changes), contents)


@pytest.fixture(scope="module")
def swapped(versions: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The JSON answer and the folder of versions 1 and 2, which several tests read."""
    folder, shown = tmp_path_factory.mktemp("out") / "out", io.StringIO()
    words = ["compare", versions, digits, "--versions", f"1,{SWAPPED}", "--out", folder, "--json"]
    with redirect_stdout(shown):
        assert cli.main([str(word) for word in words]) == 0
    return json.loads(shown.getvalue()), folder


def test_answers_of_both(swapped: tuple[dict[str, Any], Path], digits: Path):
    """All numbers are those of the swap: the accuracy of threes and eights alone is lost, and that is significant."""
    found, _ = swapped
    before, after, outcome = found["before"], found["after"], found["comparison"]
    count = len(list((digits / "test").rglob("*.png")))
    assert (found["photos"], before["version"], after["version"], found["split"]) == (count, 1, SWAPPED, "test")
    lost = sum(found["by_class"][name]["right_before"] for name in "38")
    gained = sum(found["by_class"][name]["right_after"] for name in "38")
    assert lost > 100 > gained
    assert (outcome["only_before"], outcome["only_after"]) == (lost, gained)
    assert outcome["difference"] == pytest.approx(after["accuracy"] - before["accuracy"])
    assert outcome["difference_95"][0] < outcome["difference"] < outcome["difference_95"][1] < 0
    assert (outcome["verdict"], outcome["p_value"] < 1e-9) == ("worse", True)
    assert {row["p_value"] for name, row in found["by_class"].items() if name not in "38"} == {1.0}
    assert after["recall"]["0"] == before["recall"]["0"]
    assert after["ece"] > before["ece"] > 0
    assert set(found["cpu_time"]) > {"cpu_ms_before", "cpu_ms_after", "ratio", "ratio_range_80", "rounds"}
    assert (found["failure"], found["copies"]) == (None, 0)


def test_the_photos_that_changed_are_listed(swapped: tuple[dict[str, Any], Path]):
    """photos.csv has a row for each photo, with both answers; JSON names those that changed by direction."""
    found, folder = swapped
    with (folder / "photos.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found["photos"]
    wrong = [row for row in rows if row["change"] == "right to wrong"]
    assert {row["image"] for row in wrong} == set(found["changes"]["right to wrong"])
    assert {(row["class"], row["version_1"], row["version_2"]) for row in wrong} == {("3", "3", "8"), ("8", "8", "3")}
    assert all(row["version_1"] == row["version_2"] for row in rows if row["change"] == "same")
    assert all(row["probability_1"] == row["probability_2"] for row in wrong)


def test_page(swapped: tuple[dict[str, Any], Path]):
    """The page loads nothing, says the outcome, and shows photos that changed, with their names and both answers."""
    found, folder = swapped
    page = (folder / "index.html").read_text()
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    assert "<script" not in page
    assert "version 2 is worse by more than chance" in page
    assert len(re.findall("<img ", page)) == len(re.findall(r'<img [^>]*alt="[^"]+"', page)) >= 96
    assert sum(name in page for name in found["changes"]["right to wrong"]) == 96
    assert page.count("<svg") == 2


def test_gates(versions: Path, digits: Path, penult: Penult, tmp_path: Path):
    """A worse version is exit code 1 with one line if a gate is asked for; the results are there all the same."""
    words = ("compare", versions, digits, "--no-report-photos", "--out", tmp_path, "--scorer", "svm")
    for gate, versions_, code, line in (
        (["--fail-if-worse"], "1,2", 1, "version 2 is worse by more than chance"),
        (["--max-loss", "10"], "1,2", 1, "more than --max-loss 10"),
        (["--fail-if-worse", "--max-loss", "0"], "2,1", 0, ""),
    ):
        found, out, error = penult(*words, "--versions", versions_, *gate)
        assert found == code
        assert line in error.splitlines()[-1]
        assert f"page: {(tmp_path / 'index.html').as_uri()}" in out
    assert "<img" not in (tmp_path / "index.html").read_text()


def test_other_classes_and_other_crops(versions: Path, digits: Path, penult: Penult, tmp_path: Path):
    """Common classes are compared and the others named; versions that cut photos differently see their own crops."""
    code, out, error = penult("compare", versions, digits, "--out", tmp_path, "--json")
    found = json.loads(out)
    assert (code, found["before"]["version"], found["after"]["version"]) == (0, RENAMED, OTHER_CROP)  # the newest two
    assert (found["classes"], found["only_before"], found["only_after"]) == (list("012345678"), ["nine"], ["9"])
    nines = len(list((digits / "test" / "9").iterdir()))
    assert found["after"]["only_knows"]["9"]["photos"] == nines
    assert found["photos"] == len(list((digits / "test").rglob("*.png"))) - nines
    assert 0 < found["comparison"]["agreement"] < 1
    assert "version 4 alone knows 9" in error


def test_copies_of_training_photos_are_set_apart(versions: Path, digits: Path, penult: Penult, tmp_path: Path):
    """Test photos that are also training photos are counted, and figures without them are beside those with them."""
    photos = shutil.copytree(digits, tmp_path / "photos")
    for source in sorted((photos / "train" / "3").iterdir())[:5]:
        shutil.copy(source, photos / "test" / "3" / f"copy-{source.name}")
    code, out, _ = penult("compare", versions, photos, "--versions", "1,2", "--out", tmp_path / "out", "--json")
    found = json.loads(out)
    assert (code, found["copies"], found["without_copies"]["photos"]) == (0, 5, found["photos"] - 5)
    assert found["without_copies"]["before"]["accuracy"] != found["before"]["accuracy"]
    assert sum("other photos or another split" in note for note in found["notes"]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--versions", "1,7"], "has no version 7"),
        (["--versions", "1,1"], "names one version twice"),
        (["--versions", "latest"], "give them as 3,4"),
        (["--scorer", "neighbours"], "--scorer"),
        (["--max-loss", "-1"], "--max-loss"),
        (["--exclude", "nowhere"], "nowhere"),
    ],
)
def test_wrong_words_are_one_line(versions: Path, digits: Path, penult: Penult, words: list[str], said: str):
    """What cannot be compared is one line, without a page."""
    try:
        code, _, error = penult("compare", versions, digits, *words)
    except SystemExit as ended:
        assert ended.code == 2
        return
    assert (code, error.count("\n")) == (1, 1)
    assert said in error


def test_models_that_cannot_be_compared(
    copy_model: Callable[[Path], Path], digits: Path, make_photos: Callable[..., Path], penult: Penult, tmp_path: Path
):
    """One version, one class, or photos of other classes: one line that says why."""
    model = copy_model(tmp_path)
    code, _, error = penult("compare", model, digits)
    assert (code, error.count("\n"), "has one version, 1" in error) == (1, 1, True)
    shutil.copytree(model / "1", model / "2")
    cats = make_photos(tmp_path / "photos", {"cat": 8, "dog": 8})
    code, _, error = penult("compare", model, cats, "--out", tmp_path / "out")
    assert (code, "both versions know" in error.splitlines()[-1]) == (1, True)
    manifest = json.loads((model / "2" / "manifest.json").read_bytes())
    del manifest["class_maps"]  # which name other scorers
    values = {"classes": ["0"], "scorers": ["novelty"], "default_scorer": "novelty", "logits_length": 10}
    (model / "2" / "manifest.json").write_text(json.dumps(manifest | values))
    code, _, error = penult("compare", model, digits)
    assert (code, error.count("\n"), "version 2 has one class" in error) == (1, 1, True)


def test_from_python_without_torch(versions: Path, digits: Path, tmp_path: Path):
    """The function returns the outcome, raises for no gate, and needs no PyTorch."""
    code = (
        "import sys, penult.export\n"
        f"found = penult.export.compare({str(versions)!r}, {str(digits)!r}, (1, 2), out={str(tmp_path)!r}, "
        "fail_if_worse=True, on_line=[].append)\n"
        "print(found.is_worse, bool(found.failure), found.page.is_file(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == ["True", "True", "True", "False"]


def test_an_unknown_option_from_python(versions: Path, digits: Path):
    """A wrong name is one line."""
    with pytest.raises(SettingsError, match="did you mean versions"):
        penult.export.compare(versions, digits, version=(1, 2))
