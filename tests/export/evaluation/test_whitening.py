"""--whiten: what the layer does, that everything after it follows, and what cannot be whitened."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penult import cli
from penult.bundle.reader import read_bundle
from penult.bundle.scores import largest_difference
from penult.client import Client, NewItem
from penult.export.config.train import TrainSettings
from penult.export.errors import SettingsError
from penult.export.evaluation import whitening
from penult.export.jobs import dry_run
from penult.export.jobs.packaging import Result
from penult.export.jobs.train import train
from penult.export.onnx.float16 import to_float16
from penult.export.onnx.runtime import ExportedModel


@pytest.fixture(scope="module")
def both(trained: Result, some_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Result]:
    """The same run twice, on learnt conv stages: as it is, and whitened to 32 numbers."""
    weights, models = trained.folder.parents[2] / "tiny5.pt", tmp_path_factory.mktemp("models")
    plain = TrainSettings(
        some_digits, models / "plain", arch="tiny5", weights=str(weights), freeze=6, head_epochs=15, augment="none",
        svm="linear", report_photos=False,
    )  # fmt: skip
    return train(plain), train(replace(plain, out=models / "white", whiten=32))


@pytest.fixture(scope="module")
def outputs(both: tuple[Result, Result]) -> list[np.ndarray]:
    """Logits and descriptors of the plain bundle, then of the whitened one, on noise."""
    bundles = [read_bundle(result.folder.parent) for result in both]
    crop = bundles[0].manifest.preprocess.crop
    pixels = np.random.default_rng(0).integers(0, 256, (200, crop, crop, 3), dtype=np.uint8)
    return [array for b in bundles for array in ExportedModel(b.onnx, b.manifest).run(pixels)]


def test_kept_directions_weigh_alike():
    """Means vanish, directions do not covary, and each has var / (var + mean var), as the shrinkage has it."""
    random = np.random.default_rng(1)
    raw = np.maximum(random.normal(size=(500, 24)) @ random.normal(size=(24, 24)), 0).astype(np.float32)
    weight, bias, kept = whitening.directions(raw, 8)
    units = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    white = units @ weight.T + bias
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-5)
    covariance = np.cov(white.T)
    variances = np.sort(np.linalg.eigvalsh(np.cov(units.T)))[::-1]
    np.testing.assert_allclose(np.diag(covariance), variances[:8] / (variances[:8] + variances[:8].mean()), rtol=1e-4)
    np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=1e-5)
    assert kept == pytest.approx(variances[:8].sum() / variances.sum(), rel=1e-5)


def test_the_exported_layer_is_that_map(outputs):
    """Logits are those of the plain run; descriptors are a linear map of its descriptors at unit length."""
    logits, raw, same_logits, white = outputs
    np.testing.assert_allclose(logits, same_logits, rtol=1e-5, atol=1e-5)
    units = np.hstack([raw / np.linalg.norm(raw, axis=1, keepdims=True), np.ones((len(raw), 1))])
    solved, *_ = np.linalg.lstsq(units.astype(np.float64), white.astype(np.float64), rcond=None)
    assert white.shape == (200, 32)
    assert largest_difference(white, units @ solved) < 1e-5


def test_the_bundle_knows(both: tuple[Result, Result]):
    """Length, record, fingerprint and card are those of the whitened descriptor, and its SVM is as good."""
    plain, white = (read_bundle(result.folder.parent).manifest for result in both)
    assert (white.descriptor_length, white.is_whitened, plain.is_whitened) == (32, True, False)
    assert white.fingerprint != plain.fingerprint
    told = both[1].metrics["whitening"]
    assert (told["from_length"], told["to_length"]) == (plain.descriptor_length, 32)
    assert told == white.training["whitening"]
    assert 0.5 < told["variance_kept"] < 1
    assert told["whitened_vote"] > 0.9
    assert both[1].metrics["test"]["svm"]["accuracy"] > both[0].metrics["test"]["svm"]["accuracy"] - 0.03
    assert both[1].metrics["test"]["dense"] == both[0].metrics["test"]["dense"]
    assert f"PCA-whitened from {plain.descriptor_length}" in (both[1].folder / "MODEL_CARD.md").read_text()
    page = (both[1].folder / "report" / "index.html").read_text()
    assert "numbers, whitened" in page
    assert "--whiten 32" in page


def test_the_vote_is_counted_as_lookup_does():
    """Two clusters: those asked take the label of the nearest, by cosine."""
    stored = np.array([[1, 0.1], [1, 0], [0, 1], [0.1, 1]], np.float32)
    asked = np.array([[9, 1], [0.01, 1], [1, 0]], np.float32)
    found = whitening.vote_accuracy(stored, np.array([0, 0, 1, 1]), asked, np.array([0, 1, 1]))
    assert found == pytest.approx(2 / 3)


def test_all_verbs_take_it(both: tuple[Result, Result], some_digits: Path, tmp_path: Path, penult, copy_of):
    """`check` passes; `svm` and `quantize` make versions of 32 numbers; a float16 model stays close."""
    folder = copy_of(both[1])
    assert penult("check", folder, "--device", "cpu")[0] == 0
    assert penult("svm", folder, some_digits)[0] == 0
    code, _, err = penult("quantize", folder, some_digits, "--version", "1", "--to", "int8", "--max-loss", "10")
    assert code == 0, err
    for version in (2, 3):
        manifest = read_bundle(folder, version).manifest
        assert (manifest.descriptor_length, manifest.is_whitened) == (32, True)
    bundle = read_bundle(folder, 1)
    crop = bundle.manifest.preprocess.crop
    pixels = np.random.default_rng(0).integers(0, 256, (50, crop, crop, 3), dtype=np.uint8)
    exact, half = (
        ExportedModel(onnx, bundle.manifest).run(pixels)[1] for onnx in (bundle.onnx, to_float16(bundle.onnx))
    )
    assert largest_difference(half, exact) < 5e-3


def test_it_is_served_and_learnt_from(
    both, some_digits: Path, start_server, tmp_path: Path, monkeypatch, penult, copy_of
):
    """Lookup finds by the 32 numbers; an SVM of stored items is the only scorer, and says why; photos bring dense back."""
    folder = copy_of(both[1])
    server = start_server(folder.parent, "--lookup", str(tmp_path / "lookup"))
    monkeypatch.setenv("PENULT_TARGET", server.target)
    photos = [path for digit in "0123456789" for path in sorted((some_digits / "train" / digit).iterdir())[:20]]
    with Client(server.target) as client:
        client.put_items("seen", [NewItem(f"{p.parent.name}/{p.name}", p, label=p.parent.name) for p in photos])
        assert client.describe([photos[0]]).results[0].shape == (32,)
        near = client.lookup([photos[5]], "seen", k=1).results[0][0]
        assert near.id == f"{photos[5].parent.name}/{photos[5].name}"
    code, _, err = penult("svm", folder, "--from-collection", "seen")
    assert code == 0
    assert "the stored descriptors are whitened" in err
    stored = read_bundle(folder, 2)
    assert (stored.manifest.scorers, stored.manifest.logits_length) == (("svm",), 10)
    assert "whitened, and the dense head reads them raw" in (folder / "2" / "MODEL_CARD.md").read_text()
    assert penult("check", folder, "--device", "cpu")[0] == 0
    assert penult("svm", folder, some_digits)[0] == 0
    again = read_bundle(folder, 3).manifest
    assert set(again.scorers) == {"dense", "svm"}
    assert "dense_is_silent" not in again.training


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Result], Path]:
    """copy_of(result): a copy of its model folder."""

    def copy(result: Result) -> Path:
        return shutil.copytree(result.folder.parent, tmp_path / "models" / "white", ignore=shutil.ignore_patterns(".*"))

    return copy


@pytest.mark.parametrize(("wanted", "photos"), [(65, 1000), (64, 64), (20, 20)])
def test_more_than_there_is_is_refused(wanted: int, photos: int):
    """No more directions than numbers, or than photos but one."""
    whitening.check(min(63, photos - 1), 64, photos)
    with pytest.raises(SettingsError, match=f"--whiten {wanted}") as caught:
        whitening.check(wanted, 64, photos)
    assert caught.value.reason == "WHITEN"


def test_it_is_refused_before_anything_is_learnt(make_photos, settings, tmp_path: Path):
    """Twelve photos a class have no hundred directions: the run and its plan both say so at once."""
    make_photos(tmp_path / "photos", {"a": 12, "b": 12})
    for act in (train, dry_run.show):
        with pytest.raises(SettingsError, match="--whiten 100"):
            act(settings(whiten=100))


@pytest.mark.server
def test_the_plan_tells_the_length(make_photos, settings, tmp_path: Path, capsys):
    """--dry-run counts the numbers that will leave."""
    make_photos(tmp_path / "photos", {"a": 12, "b": 12})
    dry_run.show(settings(whiten=5), as_json=True)
    assert json.loads(capsys.readouterr().out)["descriptor_length"] == 5


@pytest.mark.parametrize("options", [["--whiten", "-1"], ["--whiten", "8", "--sweep", "freeze"]])
def test_options_that_cannot_be(options: list[str], digits: Path, capsys):
    """Below 0, and with a sweep that publishes nothing: one line."""
    assert cli.main(["train", str(digits), *options]) == 1
    assert "--whiten" in capsys.readouterr().err.splitlines()[-1]
