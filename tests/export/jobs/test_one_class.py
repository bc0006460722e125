"""Models of one class: what train and svm publish, and what outliers never decide."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from penult import cli
from penult.bundle.baseline import Baseline
from penult.bundle.manifest import BASELINE_NAME, MODEL_NAME, SVM_NAME
from penult.bundle.reader import read_bundle, read_manifest
from penult.export.config.train import TrainSettings
from penult.export.errors import PenultError
from penult.export.jobs.train import train


@pytest.fixture
def settings(zeros, tiny_weights, tmp_path):
    """Settings of a run on the zeros: settings(**changes)."""

    def make(**changes):
        values = {
            "data": zeros,
            "arch": "tiny5",
            "weights": str(tiny_weights),
            "device": "cpu",
            "outliers": zeros / "test",
        }
        return TrainSettings(out=tmp_path / "zero", **values | changes)

    return make


def test_both_measures_are_reported_and_one_is_served(one_class, zeros):
    """Version 1 serves the nearest photos, version 2 the SVM; both report the false alarms and the AUROC of both."""
    for version, measure in ((1, "nearest"), (2, "svm")):
        folder = one_class / "zero" / str(version)
        manifest, metrics = read_manifest(folder), json.loads((folder / "metrics.json").read_bytes())
        assert (manifest.classes, manifest.scorers, manifest.measure) == (("0",), ("novelty",), measure)
        assert (SVM_NAME in manifest.files) == (measure == "svm")
        novelty = metrics["novelty"]
        assert (novelty["measure"], novelty["false_alarms"], novelty["outliers"]) == (measure, 0.1, 30)
        assert metrics["test"]["novelty"]["photos"] == len(list((zeros / "test" / "0").iterdir()))
        for found in novelty["measures"].values():
            assert found["auroc_95"][0] < found["auroc"] <= found["auroc_95"][1]
            assert found["auroc"] > 0.8
        assert novelty["share_held_out_above"] <= 0.1
        page = (folder / "report" / "index.html").read_text()
        assert "Nearest outliers" in page and "onfusion" not in page
        rows = (folder / "report" / "predictions.csv").read_text().splitlines()
        assert rows[0] == "image,class,novelty,is_novel,probability"
        assert len(rows) == 1 + 20 + 30


def test_a_new_svm_keeps_the_network(one_class):
    """`penult svm` on one class keeps the network's bytes, the threshold's share, and the record of the network."""
    first, second = (read_bundle(one_class / "zero", version).manifest for version in (1, 2))
    assert first.files[MODEL_NAME] == second.files[MODEL_NAME]
    assert first.fingerprint == second.fingerprint
    assert second.training["one_class"] == {"novelty": "svm", "false_alarms": 0.1}


@pytest.mark.server
def test_outliers_decide_nothing(zeros, settings):
    """Without outliers the same bundle is published, but for metrics and report."""
    changes = {"data": zeros / "train", "false_alarms": 0.1, "report_photos": False}
    result, again = train(settings(**changes, outliers=None)), train(settings(**changes))
    assert result.metrics["novelty"]["outliers"] == 0
    for name in (MODEL_NAME, BASELINE_NAME, "golden.npz"):
        assert (result.folder / name).read_bytes() == (again.folder / name).read_bytes()


@pytest.mark.server
def test_a_finished_run_is_found_by_its_threshold(settings, capsys):
    """--resume finds the version of the same settings, and not one of another share of false alarms."""
    folders = [train(replace(settings(report_photos=False), resume=True, false_alarms=rate)).folder.name
               for rate in (0.1, 0.2, 0.1)]  # fmt: skip
    assert folders == ["1", "2", "1"]


@pytest.mark.server
def test_few_photos_are_said_to_be_few(settings):
    """A share that the held-out photos cannot show is noted, with the number of photos that would do."""
    notes = train(settings(false_alarms=0.01, report_photos=False)).metrics["notes"]
    assert re.search(r"60 held-out photos are few for a threshold at 1 % false alarms: .* 753 would do", notes[-1])


def test_the_plan_of_one_class(settings, capsys, zeros):
    """--dry-run names the class, the share of false alarms, and what has no effect; nothing is written."""
    made = settings()
    argv = ["train", str(zeros), "--out", str(made.out), "--arch", "tiny5", "--weights", made.weights, "--dry-run",
            "--outliers", str(zeros / "test"), "--epochs", "3", "--false-alarms", "5%"]  # fmt: skip
    assert cli.main(argv) == 0
    shown = capsys.readouterr().out
    assert "one class, '0'; nothing is written" in shown
    assert "for 5 % false alarms; 60 photos choose it; 139 are enough" in shown
    assert "note: --epochs has no effect with one class, which trains no layer" in shown
    assert not made.out.exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"weights": "none", "freeze": 0}, "WEIGHTS"), ({"sweep": "freeze"}, "NO_EFFECT"), ({"whiten": 8}, "NO_EFFECT"),
     ({"int8": True}, "NO_EFFECT"), ({"tensorboard": "x"}, "NO_EFFECT"), ({"outliers": "absent"}, "OUTLIERS_MISSING")],
)  # fmt: skip
def test_what_one_class_cannot_do_is_refused(settings, zeros, changes, reason, tmp_path):
    """Options whose result would not appear are refused in one line, and nothing is written."""
    changes = {key: tmp_path / value if key in ("outliers", "tensorboard") else value for key, value in changes.items()}
    with pytest.raises(PenultError) as caught:
        train(settings(data=zeros / "train", **changes))
    assert caught.value.reason == reason
    assert "\n" not in caught.value.message
    assert not list((tmp_path / "zero").glob("[0-9]*"))


def test_options_of_one_class_are_refused_with_several(few_digits, settings):
    """--outliers and --false-alarms beside several classes are refused."""
    with pytest.raises(PenultError, match="--false-alarms and --outliers have no effect with several classes"):
        train(replace(settings(), data=few_digits, false_alarms=0.1))


def test_a_bundle_of_one_class_needs_its_distances(one_class):
    """A baseline without the held-out distances, or of the other measure, is refused."""
    bundle = read_bundle(one_class / "zero", 1)
    other = read_bundle(one_class / "zero", 2)
    for wrong in (replace(bundle.baseline, held_out=None), other.baseline):
        with pytest.raises(PenultError):
            Baseline.from_bytes(wrong.to_bytes(), bundle.manifest)
    shares = bundle.baseline.probability(np.array([0, bundle.baseline.threshold, 2], dtype=np.float32))
    assert shares[0] == 1
    assert shares[1] <= 0.1 + 1 / 61
    assert shares[2] == pytest.approx(1 / 61)
