"""`penult svm`: a new SVM as a new version, with the network's classes or with others, checked and served."""

import json
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.export.splits import splits_of

from penult.bundle.errors import BundleError
from penult.bundle.naming import versions
from penult.bundle.preprocess import crop_encoded
from penult.bundle.reader import Bundle, read_bundle
from penult.bundle.writer import publish
from penult.client import Client, RequestFailed
from penult.export.config.refit import RefitSettings
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import Splits
from penult.export.data.splitting import Photo
from penult.export.errors import SettingsError
from penult.export.jobs import packaging
from penult.export.jobs import refit as refit_module
from penult.export.jobs.packaging import Result
from penult.export.jobs.refit import refit
from penult.export.jobs.refit_stored import Stored, _split
from penult.service.models.loader import Placement, load
from penult.v1 import penult_pb2 as pb

NAMES = ("zero", "one", "two", "three", "four")


@pytest.fixture(scope="module")
def other_classes(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits 0 to 4 under other names: 40 photos each to learn from, 20 to validate, 20 to test."""
    folder = tmp_path_factory.mktemp("photos") / "names"
    for digit, name in enumerate(NAMES):
        photos = sorted((digits / "train" / str(digit)).iterdir())[:60]
        parts = {
            "train": photos[:40],
            "val": photos[40:],
            "test": sorted((digits / "test" / str(digit)).iterdir())[:20],
        }
        for part, chosen in parts.items():
            (folder / part / name).mkdir(parents=True)
            for photo in chosen:
                shutil.copy(photo, folder / part / name)
    return folder


@pytest.fixture(scope="module")
def renamed(
    copy_model: Callable[[Path], Path], other_classes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    """Version 2 of a copy of the model: an SVM that names the new classes."""
    copy = copy_model(tmp_path_factory.mktemp("models"))
    return refit(RefitSettings(copy, other_classes))


@pytest.fixture(scope="module")
def bundle(renamed: Result) -> Bundle:
    """That version, read."""
    return read_bundle(renamed.folder.parent)


@pytest.fixture(scope="module")
def client(renamed: Result, start_server: Callable[..., Any]):
    """A client of a server of that version."""
    with Client(start_server(renamed.folder.parent.parent).target) as client:
        yield client


# -- other classes than the network's ----------------------------------------------------------------------------------


def test_other_classes_have_the_svm_alone(bundle: Bundle, renamed: Result):
    """The new version names the new classes with its SVM, and keeps the network byte for byte."""
    old = read_bundle(renamed.folder.parent, 1)
    assert (bundle.version, bundle.manifest.classes) == (2, tuple(sorted(NAMES)))
    assert bundle.manifest.scorers == ("svm",) == tuple(bundle.manifest.temperatures)
    assert bundle.manifest.default_scorer == "svm"
    assert bundle.onnx == old.onnx
    assert bundle.manifest.fingerprint == old.manifest.fingerprint
    assert set(renamed.metrics["test"]) == {"svm"}
    assert renamed.metrics["test"]["svm"]["photos"] == 100
    assert renamed.metrics["test"]["svm"]["accuracy"] > 0.95


def test_the_networks_record_stays(bundle: Bundle, renamed: Result):
    """What the manifest tells of the network's training stays; the SVM's photos and the old classes stand beside it."""
    old, new = read_bundle(renamed.folder.parent, 1).manifest.training, dict(bundle.manifest.training)
    svm, classes = new.pop("svm"), new.pop("classes")
    assert new.pop("dense_is_silent") == "the network was trained on other classes"
    assert new == old
    assert classes == list("0123456789")
    assert svm["photos"] == {"train": 200, "val": 100, "test": 100}
    assert svm["data_sha256"] != old["data_sha256"]
    assert (svm["network_of_version"], svm["kernel"]) == (1, renamed.metrics["svm"]["kernel"])
    history = (renamed.folder / "history.csv").read_bytes()
    assert history == (renamed.folder.parent / "1" / "history.csv").read_bytes()


def test_it_passes_every_check(renamed: Result, penult: Callable[..., tuple[int, str, str]]):
    """`penult check` finds digests, shapes and goldens of the new version right."""
    code, out, err = penult("check", renamed.folder.parent, "--device", "cpu")
    assert (code, err) == (0, "")
    assert out.startswith("digits version 2: good.")


def test_goldens_are_photos_of_the_new_classes(bundle: Bundle):
    """The golden photos are new ones, with a score per new class, and a changed SVM score is refused."""
    assert bundle.goldens.svm_scores.shape == (8, 5)
    assert bundle.goldens.logits.shape == (8, 10)
    assert len(set(bundle.goldens.svm_scores.argmax(1).tolist())) == 5
    scores = bundle.goldens.svm_scores + np.float32(0.1)
    with pytest.raises(BundleError) as caught:
        load(replace(bundle, goldens=replace(bundle.goldens, svm_scores=scores)), Placement("cpu"))
    assert caught.value.reason == "GOLDEN_VALUES"


def test_the_report_is_true(renamed: Result, bundle: Bundle):
    """Report and card name the new classes and say that the network is the old one; no learning curve is claimed."""
    page = (renamed.folder / "report" / "index.html").read_text()
    card = (renamed.folder / "MODEL_CARD.md").read_text()
    for text in (page, card):
        assert all(name in text for name in NAMES)
        assert "version 1, byte for byte" in text
        assert f"{100 * renamed.metrics['test']['svm']['accuracy']:.1f} %" in text
        assert "dense head is not used" in text
        assert "learning curves" not in text.lower()
        assert "fine-tuned on" not in text
    assert not any("learning" in name for name in bundle.manifest.files)
    rows = (renamed.folder / "report" / "predictions.csv").read_text().splitlines()
    assert rows[0] == "image,class,svm,svm_probability"
    assert len(rows) == 101


def test_classify_names_the_new_classes(client: Client, renamed: Result, other_classes: Path):
    """Over a real socket the default scorer is the SVM, its labels are the offline ones, and its classes the new ones."""
    rows = [line.split(",") for line in (renamed.folder / "report" / "predictions.csv").read_text().splitlines()[1:]]
    answer = client.classify([other_classes / row[0] for row in rows], model="digits")
    assert (answer.version, answer.scorer) == (2, "svm")
    assert [result.label for result in answer.results] == [row[2] for row in rows]
    assert {scored.label for scored in answer.results[0].classes} == set(NAMES)


def test_the_dense_head_is_refused(client: Client, other_classes: Path):
    """Asking for the dense scorer is FAILED_PRECONDITION with a line that says what there is; the server goes on."""
    photo = next((other_classes / "test" / "three").iterdir())
    with pytest.raises(RequestFailed) as caught:
        client.classify([photo], model="digits", scorer="dense")
    assert caught.value.code == "FAILED_PRECONDITION"
    assert "digits version 2 has no dense scorer; ask for svm" in str(caught.value)
    assert client.classify([photo], model="digits", scorer="svm").results[0].label == "three"


def test_descriptors_compare_with_the_old_version(client: Client, other_classes: Path, renamed: Result):
    """describe gives the old version's fingerprint and descriptors, and Score names the new classes from them."""
    photos = sorted((other_classes / "test" / "two").iterdir())
    old = read_bundle(renamed.folder.parent, 1)
    answer = client.describe(photos, model="digits")
    assert answer.fingerprint == old.manifest.fingerprint
    crops = np.stack([crop_encoded(photo.read_bytes(), old.manifest.preprocess) for photo in photos])
    descriptors = np.stack(answer.results)
    np.testing.assert_allclose(descriptors, load(old, Placement("cpu")).session.run(crops)[1], atol=1e-4)
    scored, named = client.score(descriptors, model="digits"), client.classify(photos, model="digits")
    assert [result.label for result in scored.results] == [result.label for result in named.results]
    assert np.allclose([r.score for r in scored.results], [r.score for r in named.results], atol=1e-4)


def test_the_service_tells_of_it(client: Client, bundle: Bundle):
    """GetModel lists the new classes and the SVM as the only scorer."""
    told = client.get_model("digits")
    assert list(told.classes) == list(bundle.manifest.classes)
    assert (list(told.scorers), told.default_scorer) == ([pb.SCORER_SVM], pb.SCORER_SVM)


# -- the network's own classes -----------------------------------------------------------------------------------------


def test_the_same_classes_keep_the_dense_head(model: Path, digits: Path):
    """With the network's own photos the new version has both scorers, and repeats what training measured."""
    result = refit(RefitSettings(model, digits))
    before, now = read_bundle(model, 1), read_bundle(model, 2)
    assert now.manifest.scorers == ("dense", "svm") == tuple(now.manifest.temperatures)
    assert now.manifest.classes == before.manifest.classes
    assert now.manifest.training["svm"]["data_sha256"] == before.manifest.training["data_sha256"]
    assert "classes" not in now.manifest.training
    trained = json.loads((model / "1" / "metrics.json").read_bytes())
    for scorer in ("dense", "svm"):
        assert result.metrics["test"][scorer]["accuracy"] == trained["test"][scorer]["accuracy"]
    assert not any("other photos" in note for note in result.metrics["notes"])
    assert "scorers" not in json.loads((model / "2" / "manifest.json").read_bytes())


def test_classes_in_another_order_are_the_same_classes(model: Path, digits: Path, tmp_path: Path):
    """A network whose classes stand in another order than the folders keeps its order, and each label its meaning."""
    before = read_bundle(model, 1)
    names = tuple(reversed(before.manifest.classes))
    files = {
        name: (model / "1" / name).read_bytes()
        for name in before.manifest.files
        if name not in ("svm.pkl", "baseline.npz", "dense_head.npz")
    }
    goldens = replace(before.goldens, svm_scores=np.zeros((0, 0), np.float32))
    files |= {"model.onnx": _with_logits_reversed(before.onnx)}
    files |= {"golden.npz": replace(goldens, logits=goldens.logits[:, ::-1].copy()).to_bytes()}
    manifest = replace(
        before.manifest, classes=names, default_scorer="dense", temperatures={"dense": 1.0}, class_maps=None
    )
    publish(tmp_path / "turned", manifest, files)
    result = refit(RefitSettings(tmp_path / "turned", digits))
    after = read_bundle(tmp_path / "turned", 2)
    assert after.manifest.classes == names
    trained = json.loads((model / "1" / "metrics.json").read_bytes())
    assert result.metrics["test"]["dense"]["recall"] == pytest.approx(trained["test"]["dense"]["recall"])
    assert result.metrics["test"]["svm"]["accuracy"] > 0.95
    load(after, Placement("cpu"))


def _with_logits_reversed(data: bytes) -> bytes:
    model = onnx.load_from_string(data)
    for node in model.graph.node:
        node.output[:] = ["unturned" if name == "logits" else name for name in node.output]
    columns = onnx.numpy_helper.from_array(np.arange(9, -1, -1), "columns")
    model.graph.initializer.append(columns)
    model.graph.node.append(onnx.helper.make_node("Gather", ["unturned", "columns"], ["logits"], axis=1))
    return model.SerializeToString()


def test_the_dense_head_returns_with_its_classes(model: Path, other_classes: Path, digits: Path):
    """After a version for other classes, one with the network's own has the dense head again."""
    refit(RefitSettings(model, other_classes))
    refit(RefitSettings(model, other_classes, kernel="linear"))
    refit(RefitSettings(model, digits))
    found = [read_bundle(model, version).manifest for version in (1, 2, 3, 4)]
    assert [manifest.scorers for manifest in found] == [("dense", "svm"), ("svm",), ("svm",), ("dense", "svm")]
    assert len({manifest.fingerprint for manifest in found}) == 1
    load(read_bundle(model, 4), Placement("cpu"))


# -- options and what goes wrong ---------------------------------------------------------------------------------------


def test_the_verb_answers_in_json(penult: Callable[..., tuple[int, str, str]], model: Path, other_classes: Path):
    """`penult svm --json` prints bundle, scorer, kernel, seconds and test metrics; every option has its effect."""
    options = ["--version", "1", "--kernel", "rbf", "--class-weights", "balanced", "--seed", "7", "--json"]
    code, out, _ = penult("svm", model, other_classes, *options)
    told, bundle = json.loads(out), read_bundle(model)
    assert code == 0
    assert (told["bundle"], told["default_scorer"], told["kernel"]) == (str(model / "2"), "svm", "rbf")
    assert told["seconds"] > 0
    assert told["test"]["svm"]["accuracy"] > 0.9
    assert told["test_against_validation"]["svm"]["val_photos"] > 0
    assert told["cautions"] == []
    metrics = json.loads((model / "2" / "metrics.json").read_bytes())
    assert (metrics["svm"]["kernel"], metrics["svm"]["class_weight"]) == ("rbf", "balanced")
    assert (bundle.manifest.training["svm"]["seed"], bundle.manifest.training["settings"]["seed"]) == (7, 0)
    load(bundle, Placement("cpu"))


def test_the_verb_prints_a_table(penult: Callable[..., tuple[int, str, str]], model: Path, other_classes: Path):
    """People get a row per scorer, where the bundle and its report are, and how long it took."""
    code, out, err = penult("svm", model, other_classes)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["scorer", "right", "accuracy", "95", "%", "interval", "validation", "macro-F1"]
    assert lines[1].startswith("svm ")
    assert f"bundle: {model / '2'}" in lines
    assert (model / "2" / "report" / "index.html").is_file()
    assert re.fullmatch(r"done in \d+\.\d s", err.splitlines()[-1])


def test_photos_are_set_aside_as_in_training(model: Path, digits: Path, tmp_path: Path):
    """Without val/ and test/ folders, seed and fractions are those of the network's training; options override them."""
    flat = tmp_path / "flat"
    shutil.copytree(digits / "train", flat)
    edited = json.loads((model / "1" / "manifest.json").read_bytes())
    edited["training"]["settings"] |= {"seed": 3, "val": "0.25", "test": "0.1"}
    (model / "1" / "manifest.json").write_text(json.dumps(edited))
    wanted = TrainSettings(flat, model, weights="none", freeze=0, seed=3, val="0.25", test="0.1")
    refit(RefitSettings(model, flat, kernel="linear"))
    record = read_bundle(model, 2).manifest.training["svm"]
    assert (record["seed"], record["data_sha256"]) == (3, splits_of(wanted).sha256)
    refit(RefitSettings(model, flat, kernel="linear", version=1, seed=4, val="0.3"))
    record = read_bundle(model, 3).manifest.training["svm"]
    assert record["data_sha256"] == splits_of(replace(wanted, seed=4, val="0.3")).sha256


_NFC, _NFD = "p\u00e9ch\u00e9", "pe\u0301che\u0301"


def test_a_bundles_spelling_of_a_class_stays():
    """A network of before whose class is in another Unicode form keeps it, its order and its dense head."""
    photos = tuple(Photo(Path(str(label)), label) for label in (0, 1))
    found = refit_module.reorder_classes(Splits(("a", _NFC), photos, (), (), ()), (_NFD, "a"), ("other",))
    assert found.classes == (_NFD, "a")
    assert [photo.label for photo in found.train] == [1, 0]


@pytest.mark.parametrize("order", [("b", "a"), (_NFD, "a"), ("other",)])
def test_stored_labels_in_two_unicode_forms_are_one(order: tuple[str, ...]):
    """Items labelled on two systems are one class; the network's spelling is kept where its classes are the same."""
    names = ("a", _NFC) if _NFD in order or "other" in order else order
    labels = [name if name != _NFC or number % 2 else _NFD for number in range(8) for name in names]
    rows = np.random.default_rng(0).standard_normal((16, 4), dtype=np.float32)
    splits = _split(Stored("c", "f", tuple(map(str, range(16))), tuple(labels), rows), order, seed=0)
    assert splits.classes == (names if "other" in order else order)
    for photo in splits.train + splits.val + splits.test:
        told = labels[int(str(photo.path))]
        assert unicodedata.normalize("NFC", splits.classes[photo.label]) == unicodedata.normalize("NFC", told)


def test_another_split_than_the_networks_is_noted(renamed: Result):
    """Photos that the network may have seen in training make the test too easy: metrics and report say so."""
    (note,) = (note for note in renamed.metrics["notes"] if "trained on other photos" in note)
    assert note in (renamed.folder / "report" / "index.html").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [(["absent", "photos"], "holds no version"), (["digits", "photos"], "does not exist"),
     (["digits", "photos", "--version", "7"], "has no version 7"), (["digits", "photos", "--seed", "-1"], "--seed")],
    ids=" ".join,
)  # fmt: skip
def test_what_cannot_work_is_one_line(
    penult: Callable[..., tuple[int, str, str]], model: Path, words: list[str], told: str
):
    """A model, version, folder or seed that is not there ends with exit code 1 and one line; nothing is published."""
    code, out, err = penult("svm", model.parent / words[0], model.parent / words[1], *words[2:])
    assert (code, out) == (1, "")
    assert told in err.splitlines()[-1]
    assert versions(model) == [1]


def test_a_seed_out_of_range_is_refused():
    """Seeds are those that NumPy takes."""
    for seed in (-1, 2**32):
        with pytest.raises(SettingsError):
            RefitSettings(Path("m"), Path("d"), seed=seed)


def test_goldens_that_do_not_replay_publish_nothing(model: Path, other_classes: Path, monkeypatch: pytest.MonkeyPatch):
    """Where the recorded answers cannot be repeated, no version appears."""
    made = packaging.make_goldens

    def other_answers(*arguments: Any) -> Any:
        good = made(*arguments)
        return replace(good, svm_scores=good.svm_scores + 1)

    monkeypatch.setattr(packaging, "make_goldens", other_answers)
    with pytest.raises(BundleError) as caught:
        refit(RefitSettings(model, other_classes))
    assert caught.value.reason == "GOLDEN_VALUES"
    assert versions(model) == [1]


def test_pytorch_is_not_loaded(model: Path, other_classes: Path):
    """The whole verb runs without torch, whose import alone would take seconds."""
    code = f"""
import sys
from penult import cli
code = cli.main(["svm", {str(model)!r}, {str(other_classes)!r}, "--json"])
print(code, [name for name in ("torch", "torchvision", "onnx") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert result.stdout.splitlines()[-1] == "0 []", result.stderr
    assert versions(model) == [1, 2]
