"""A model that was imported describes the photos of the labelling page, and the page names the next command."""

import shlex
from pathlib import Path

from tests.export.jobs.test_import_model import NAMES, SPEC, Net, write
from tests.fixtures.shapes import write_shapes

import penult.export
from penult.label.settings import LabelSettings
from penult.label.start import network_of, session_of


def test_an_imported_model_serves_labelling(tmp_path: Path):
    """The photos get descriptors, and the line to train leaves the network to `penult train`, which cannot train it."""
    source, labels = write(Net(), tmp_path / "net.onnx"), tmp_path / "classes.txt"
    labels.write_text("\n".join(NAMES))
    penult.export.import_model(source, tmp_path / "models" / "pets", labels=labels, preprocess=SPEC, on_line=[].append)
    photos = tmp_path / "photos"
    photos.mkdir()
    write_shapes(photos, 6, (80, 60))
    settings = LabelSettings(photos, labels=tmp_path / "labels.csv", model=tmp_path / "models" / "pets", browser=False)
    session = session_of(settings, network_of(settings))
    try:
        assert session.pool.inputs.shape == (len(session.pool.ids), 12)
        assert session.next(3)
        command = shlex.split(session.state()["train_command"])
    finally:
        session.close()
    assert command[:2] == ["penult", "train"]
    assert "--arch" not in command
    assert command[-2:] == ["--out", str(tmp_path / "models" / "pets")]
