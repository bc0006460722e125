"""What a command ends with: commands, addresses and files that are right as they stand."""

import argparse
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import pytest

from penult.cli import classify
from penult.cli.parser import Parser
from penult.cli.published import as_json, link, next_steps, print_last, print_published
from penult.export.jobs.packaging import Result
from penult.service import config

FIGURES = {"accuracy": 0.9, "accuracy_95": [0.8, 0.95], "macro_f1": 0.9, "photos": 20}


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    """A version below the default repository of the folder that one is in, whose name needs no quotes."""
    (tmp_path / "models" / "pets" / "3").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return Result(Path("models/pets/3"), {"test": {"svm": FIGURES}, "default_scorer": "svm"})


def _photos(folder: Path) -> Path:
    for name in ("train/cat/1.jpg", "Testing/dog/b.PNG", "Testing/dog/a b.jfif", "Testing/dog/.hidden.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_each_step_can_be_taken(result: Result, tmp_path: Path):
    """The commands parse, serve finds the repository, and the photo is there, a test photo, quoted."""
    serve, page, ask = next_steps(result.folder, _photos(tmp_path / "photos"))
    assert serve == "serve:  penult serve"
    assert page.split()[1] == f"http://127.0.0.1:{config.ServeConfig().metrics_port}/"
    words = shlex.split(ask.removeprefix("ask:"))
    parser = Parser()
    classify.add_arguments(parser)
    arguments = parser.parse_args(words[2:])
    assert (words[:2], arguments.model) == (["penult", "classify"], "pets")
    assert Path(str(arguments.images[0])) == tmp_path / "photos" / "Testing" / "dog" / "a b.jfif"


def test_the_photo_beside_a_label_file_is_the_example(result: Result, tmp_path: Path):
    """After training by a label file, the last step names a photo of its folder."""
    labels = _photos(tmp_path / "photos") / "labels.csv"
    labels.write_text("image,label\n")
    assert next_steps(result.folder, labels) == next_steps(result.folder, labels.parent)


def test_another_repository_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Models that lie elsewhere are served from there; without photos at hand the example says PHOTO."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my models" / "pets" / "1"
    folder.mkdir(parents=True)
    serve, _, ask = next_steps(folder, None)
    assert shlex.split(serve)[1:] == ["penult", "serve", "--models", str(tmp_path / "my models")]
    assert ask.endswith("--model pets PHOTO")


def test_the_program_is_named_as_it_was_run(result: Result, monkeypatch: pytest.MonkeyPatch):
    """Whoever typed a path to penult is shown that path; under another name it is penult."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", [".venv/bin/penult", "train"])
    assert next_steps(result.folder, None)[0] == "serve:  .venv/bin/penult serve"
    monkeypatch.setattr(sys, "argv", ["/x/pytest"])
    assert next_steps(result.folder, None)[0] == "serve:  penult serve"


def test_the_report_is_a_link_and_json_is_as_it_was(result: Result, capsys: pytest.CaptureFixture[str]):
    """People get the report's address and what to do; scripts get the one line that they had, and files with names."""
    arguments = argparse.Namespace(json=False, data=None)
    print_last(arguments, result)
    (report,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("report: ")]
    address = urlparse(report.split()[1])
    assert address.scheme == "file"
    assert Path(url2pathname(address.path)) == result.folder.resolve() / "report" / "index.html"
    assert link(Path("ä b.html")).endswith("/%C3%A4%20b.html")
    print_published(arguments, result)
    assert "serve:" not in capsys.readouterr().out
    arguments.json = True
    print_last(arguments, result)
    answer = json.loads(capsys.readouterr().out)
    assert len(answer.pop("cautions")) == 1
    assert answer == {"bundle": "models/pets/3", "default_scorer": "svm", "test": {"svm": FIGURES}}


def test_people_are_told_what_few_photos_leave_open(result: Result, capsys: pytest.CaptureFixture[str]):
    """With few photos the table has counts and the interval, and sentences follow it; scripts get those as cautions."""
    disagree = {"svm": {"sentence": "They disagree."}}
    told = replace(result, metrics=result.metrics | {"test_against_validation": disagree})
    print_published(argparse.Namespace(json=False), told)
    head, row, _, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["scorer", "right", "accuracy"]
    assert row.split() == ["svm", "18", "of", "20", "80–95", "%", "80–95", "%", "0.9"]
    assert lines[:2] == ["They disagree.", *as_json(told)["cautions"][1:]]
    assert lines[1].startswith("With 20 test photos, the accuracy on new photos may be between 80 and 95 %.")
