"""Thresholds from `penult train --max-error` and `penult calibrate`: photos set aside, versions, refusals."""

import json
import shutil
from pathlib import Path

import pytest

import penult.export
from penult import cli
from penult.bundle.errors import PenultError
from penult.bundle.reader import read_bundle, read_manifest
from penult.export.config.photos import PhotoSource
from penult.export.config.train import TrainSettings
from penult.export.data.certifying import set_aside
from penult.export.data.dataset import load_splits
from penult.export.errors import SettingsError


@pytest.fixture
def model(models: Path, tmp_path: Path) -> Path:
    """A copy of the model of ten digits, with version 1."""
    return shutil.copytree(models / "digits", tmp_path / "models" / "digits")


def test_calibrate_publishes_thresholds_of_the_same_network(model, digits, capsys):
    """The next version has the points, the same fingerprint and files, and report and card show them."""
    assert cli.main(["calibrate", str(model), str(digits / "test"), "--max-error", "5%", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    before, after = read_bundle(model, 1), read_bundle(model, 2)
    assert after.manifest.fingerprint == before.manifest.fingerprint
    assert (after.svm, after.onnx) == (before.svm, before.onnx)
    default = next(p for p in after.manifest.operating_points if p.is_default and p.scorer == "svm")
    assert (default.max_error, default.photos) == (0.05, said["abstaining"]["photos"])
    assert default.answered > 0.8 * default.photos
    assert "Withheld answers" in (model / "2" / "report" / "index.html").read_text()
    card = (model / "2" / "MODEL_CARD.md").read_text()
    assert card.index("## Withheld answers") < card.index("## Data")
    assert cli.main(["check", str(model)]) == 0


def test_calibrate_is_a_function(model, digits):
    """From Python it publishes what the command does, reports to functions, and raises what the command prints."""
    lines = []
    result = penult.export.calibrate(model, digits / "test", max_error="10%", on_line=lines.append)
    assert result.folder == model / "2"
    default = next(p for p in read_manifest(result.folder).operating_points if p.is_default and p.scorer == "svm")
    said = next(p for p in result.metrics["abstaining"]["points"] if p["scorer"] == "svm" and p["is_default"])
    assert (default.max_error, said["thresholds"]) == (0.1, list(default.thresholds))
    assert any(" certify, " in line for line in lines)
    with pytest.raises(PenultError, match="learnt from") as refused:
        penult.export.calibrate(model, digits / "train", on_line=lines.append)
    assert refused.value.reason == "PHOTOS_KNOWN"
    assert not (model / "3").exists()


def test_photos_that_taught_the_model_are_refused(model, digits, capsys):
    """The photos that the model learnt from would look too easy, so nothing is published."""
    assert cli.main(["calibrate", str(model), str(digits / "train")]) == 1
    assert "learnt from" in capsys.readouterr().err
    assert not (model / "2").exists()


def test_too_few_photos_say_how_many_would_do(model, digits, tmp_path, capsys):
    """Forty photos cannot certify 1 %; the error names a number of photos, and nothing is published."""
    for digit in "0123456789":
        (tmp_path / "few" / digit).mkdir(parents=True)
        for photo in sorted((digits / "test" / digit).iterdir())[:4]:
            shutil.copy(photo, tmp_path / "few" / digit)
    assert cli.main(["calibrate", str(model), str(tmp_path / "few"), "--max-error", "1%"]) == 1
    error = capsys.readouterr().err
    assert "cannot certify 1%" in error
    assert "would do" in error
    assert not (model / "2").exists()


def test_a_new_svm_is_certified_on_photos_set_aside(model, few_digits, capsys):
    """`penult svm --max-error` certifies the SVM that it publishes, and records it for the next versions."""
    assert cli.main(["svm", str(model), str(few_digits), "--max-error", "20%", "--val", "0.6"]) == 0
    assert "certifying photos" in capsys.readouterr().out
    manifest = read_manifest(model / "2")
    assert manifest.training["svm"]["max_error"] == 0.2
    assert manifest.training["svm"]["photos"]["certify"] > 20
    assert any(point.scorer == "svm" and point.is_default for point in manifest.operating_points)
    metrics = json.loads((model / "2" / "metrics.json").read_text())
    measured = next(p for p in metrics["abstaining"]["points"] if p["scorer"] == "svm" and p["is_default"])
    assert measured["test"]["photos"] == 40
    assert (model / "2" / "report" / "abstaining.csv").is_file()


def test_photos_that_chose_the_epoch_are_named(model, digits, few_digits, capsys):
    """The same photos without --max-error in training: a note says what that costs. Other photos have another note."""
    options = ["--max-error", "20%", "--kernel", "linear", "--no-report-photos"]
    assert cli.main(["svm", str(model), str(digits), *options]) == 0
    said = capsys.readouterr().err
    assert "took part in the choice of its epoch" in said
    assert "trained on other photos" not in said
    assert cli.main(["svm", str(model), str(few_digits), *options]) == 0
    said = capsys.readouterr().err
    assert "trained on other photos" in said
    assert "choice of its epoch" not in said


def test_a_new_svm_without_the_option_drops_the_thresholds_of_calibrate(model, digits, few_digits, capsys):
    """Thresholds belong to the scores that they were certified for; the command says that they are gone."""
    assert cli.main(["calibrate", str(model), str(digits / "test")]) == 0
    assert cli.main(["svm", str(model), str(few_digits)]) == 0
    assert "run penult calibrate" in capsys.readouterr().err
    assert read_manifest(model / "3").operating_points == ()
    assert "calibrate" not in read_manifest(model / "3").training


def test_certifying_photos_leave_training_and_test_as_they_are(few_digits, tmp_path):
    """Half of the validation photos move to `certify`; the SHA-256 of the splits tells both divisions apart."""
    splits = load_splits(PhotoSource(few_digits), tmp_path / "m", "0.3", "0.15", 0)
    divided = set_aside(splits, 0)
    assert (divided.train, divided.test) == (splits.train, splits.test)
    assert {*divided.val, *divided.certify} == {*splits.val}
    assert abs(len(divided.val) - len(divided.certify)) <= 4
    assert divided.sha256 != splits.sha256
    assert divided.counts()["certify"] == len(divided.certify)


def test_max_error_doubles_the_validation_photos(tmp_path):
    """--val is 0.3 with --max-error unless it is given, and the manifest records neither option if it is absent."""
    given = {"data": tmp_path, "out": tmp_path / "m"}
    assert TrainSettings.of(**given, max_error="5%").val == "0.3"
    assert TrainSettings.of(**given, max_error="0.05", val="0.2").val == "0.2"
    assert not {"max_error", "per_class"} & set(TrainSettings.of(**given).as_json())
    with pytest.raises(SettingsError, match="add --max-error"):
        TrainSettings.of(**given, per_class=True)
