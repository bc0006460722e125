"""The options of penult label: what contradicts what, each in one line."""

import pytest

from penult.cli import main
from penult.label.settings import LabelSettings


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("--classes a,,b", "has an empty name; write a,b,c"),
        ("--model models/m --arch resnet18 --weights none", "--arch and --weights would have no effect with --model"),
        ("--version 2", "--version is that of a model"),
        ("--model models/m --collection c --from-collection d", "name different collections"),
        ("--strategy random --budget 5", "--strategy and --budget would have no effect without --replay"),
        ("--port 70000", "--port 70000 must be at least 0 and below 65536"),
    ],
)
def test_contradictions(tmp_path, capsys, options, why):
    """They are refused before a photo is read."""
    try:
        code = main(["label", str(tmp_path), *options.split()])
    except SystemExit as ended:
        code = int(str(ended.code))
    error = capsys.readouterr().err
    assert code in (1, 2)
    assert why in error.splitlines()[-1]


def test_a_folder_without_photos(tmp_path, capsys):
    """It is one line, and no label file is left behind."""
    labels = tmp_path / "labels.csv"
    assert main(["label", str(tmp_path), "--labels", str(labels), "--weights", "none", "--no-browser"]) == 1
    assert "holds no photo; give a folder of JPEG" in capsys.readouterr().err
    assert not labels.exists()


def test_classes_are_names_once():
    """Blanks around a name do not count, and a repeated name is one class."""
    settings = LabelSettings.given(
        {"folder": ".", "classes": None}, environment={"PENULT_LABEL_CLASSES": "a b, c,c ,é"}
    )
    assert settings["classes"] == ("a b", "c", "é")


def test_publishing_defaults_to_the_model(tmp_path):
    """--model is the model that gets versions, unless --publish names another."""
    assert LabelSettings(tmp_path, model=tmp_path / "m").model_to_publish == tmp_path / "m"
    assert LabelSettings(tmp_path, model=tmp_path / "m", publish=tmp_path / "n").model_to_publish == tmp_path / "n"
    assert LabelSettings(tmp_path, collection="c").model_to_publish is None
