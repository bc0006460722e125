"""Learning from what is stored: a new SVM version of labelled items, live within seconds of labelling twenty photos."""

import json
import time

import numpy as np
import pytest

from penult import cli
from penult.bundle.reader import read_bundle
from penult.client import Client, NewItem


@pytest.fixture
def shop(copy_model, start_server, tmp_path, digits, monkeypatch):
    """A server of digits that watches closely, and a collection of the digits 0 to 7, labelled: (model folder, client)."""
    folder = copy_model(tmp_path / "models")
    server = start_server(tmp_path / "models", "--lookup", str(tmp_path / "lookup"), "--watch-s", "0.2")
    monkeypatch.setenv("PENULT_TARGET", server.target)
    with Client(server.target) as client:
        paths = [path for digit in "01234567" for path in sorted((digits / "train" / digit).iterdir())[:30]]
        client.put_items(
            "seen", [NewItem(f"{path.parent.name}/{path.name}", path, label=path.parent.name) for path in paths]
        )
        yield folder, client


def accuracy(client: Client, digits, classes: str, **options) -> float:
    """The share of test photos of some classes that are named right."""
    photos = [path for digit in classes for path in sorted((digits / "test" / digit).iterdir())[:30]]
    answer = client.classify(photos, **options)
    return float(np.mean([r.label == p.parent.name for r, p in zip(answer.results, photos, strict=True)]))


def test_a_new_class_goes_live(shop, digits, capsys):
    """Twenty photos of an 8 labelled "eight": the next version of the SVM names eights so."""
    folder, client = shop
    eights = sorted((digits / "train" / "8").iterdir())[:20]
    client.put_items("seen", [NewItem(f"eight/{path.name}", path, label="eight") for path in eights])
    assert cli.main(["svm", str(folder), "--from-collection", "seen", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    while client.get_model().version.version == 1:
        time.sleep(0.05)
    assert list(client.get_model().classes) == [*"01234567", "eight"]
    photos = sorted((digits / "test" / "8").iterdir())[:30]
    found = [result.label for result in client.classify(photos, scorer="svm").results]
    assert found.count("eight") >= 24
    assert accuracy(client, digits, "01234567", scorer="svm") > 0.93
    assert told["bundle"].endswith("/2")


def test_the_bundle_tells_where_its_svm_is_from(shop):
    """The network stays byte for byte; record, metrics and goldens are those of the new SVM, and check passes."""
    folder, _ = shop
    before = read_bundle(folder)
    assert cli.main(["svm", str(folder), "--from-collection", "seen"]) == 0
    after = read_bundle(folder)
    assert (after.version, after.onnx == before.onnx) == (2, True)
    assert after.manifest.fingerprint == before.manifest.fingerprint
    chosen = after.manifest.training["svm"]
    assert (chosen["collection"], sum(chosen["photos"].values())) == ("seen", 240)
    metrics = json.loads((folder / "2" / "metrics.json").read_text())
    assert metrics["collection"] == "seen"
    assert metrics["test"]["svm"]["accuracy"] > 0.9
    assert cli.main(["check", str(folder)]) == 0


def test_with_the_networks_own_classes_the_dense_head_stays(shop, digits):
    """Items of all ten classes: both scorers are there, and the dense head's figures are those of its logits."""
    folder, client = shop
    more = [path for digit in "89" for path in sorted((digits / "train" / digit).iterdir())[:30]]
    client.put_items(
        "seen", [NewItem(f"{path.parent.name}/{path.name}", path, label=path.parent.name) for path in more]
    )
    before = read_bundle(folder).manifest
    assert cli.main(["svm", str(folder), "--from-collection", "seen"]) == 0
    manifest = read_bundle(folder).manifest
    assert manifest.classes == tuple("0123456789")
    assert set(manifest.scorers) == {"dense", "svm"}
    assert json.loads((folder / "2" / "metrics.json").read_text())["train"]["dense"]["accuracy"] > 0.97
    # These items were learnt from: what they say of the head is not to be trusted.
    assert manifest.temperatures["dense"] == before.temperatures["dense"]
    assert manifest.temperatures["svm"] != before.temperatures["svm"]
    assert manifest.default_scorer == before.default_scorer
    page = (folder / "2" / "report" / "index.html").read_text()
    assert "used for this figure only" not in page
    assert "The default scorer is the one of version 1." in page
    assert "the network may have learnt from some of these items" in page


@pytest.mark.parametrize(
    ("argv", "told"),
    [(["--from-collection", "absent"], "there is no collection absent"), (["--from-collection", "plain"], "has a label"),
     (["--from-collection", "one"], "fewer than two labels"), (["--from-collection", "few"], "has 3 items"),
     ([], "either a folder of photos or --from-collection"), (["X", "--from-collection", "seen"], "either a folder")],
)  # fmt: skip
def test_what_cannot_be_learnt_from_is_one_line(shop, digits, capsys, argv, told):
    """No such collection, no labels, one label, too few items, both sources or none: one line each, nothing published."""
    folder, client = shop
    photos = sorted((digits / "train" / "3").iterdir())[:12]
    client.put_items("plain", [NewItem(p.name, p) for p in photos])
    client.put_items("one", [NewItem(p.name, p, label="x") for p in photos])
    client.put_items("few", [NewItem(p.name, p, label="ab"[n < 3]) for n, p in enumerate(photos)])
    capsys.readouterr()
    assert cli.main(["svm", str(folder), *argv]) == 1
    err = capsys.readouterr().err.splitlines()
    assert told in err[-1]
    assert err[-1].startswith("penult: ")
    assert not (folder / "2").exists()


def test_another_networks_descriptors_are_not_learnt_from(shop, publish_brightness, tmp_path, capsys):
    """A collection of one model cannot make an SVM for another; the line names reindex."""
    light = publish_brightness(tmp_path / "other", "light").parent
    assert cli.main(["svm", str(light), "--from-collection", "seen"]) == 1
    assert "penult index reindex seen --model light" in capsys.readouterr().err
