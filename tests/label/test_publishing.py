"""Publish labels: a running server names a new class, refusals are one line, and the files that a job reads stay still."""

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penult.bundle.errors import BundleError
from penult.cli.parser import Parser
from penult.client import Client
from penult.export.config.refit import RefitSettings
from penult.export.config.train import TrainSettings
from penult.label.errors import LabelError
from penult.label.labels_file import Label, LabelsFile
from penult.label.publishing import Base, Publisher, check_classes, train_command
from penult.label.session import Answer, Session
from penult.label.settings import LabelSettings
from penult.label.start import network_of, session_of

NAMES = {"0": "zero", "1": "one", "2": "it's two"}


@pytest.fixture
def file(digits: Path, tmp_path: Path) -> Iterator[LabelsFile]:
    """An empty label file of the digits."""
    opened = LabelsFile(tmp_path / "my labels.csv", digits)
    yield opened
    opened.close()


def name(file: LabelsFile, digits: Path, of: str, count: int) -> None:
    """Label the first `count` training photos of each digit."""
    found = [(digit, photo) for digit in of for photo in sorted((digits / "train" / digit).iterdir())[:count]]
    file.put([Label(photo.relative_to(digits).as_posix(), NAMES[digit], "typical") for digit, photo in found])


def answer(session: Session, of: str, count: int) -> None:
    """Answer as the page does: the first `count` training photos of each digit."""
    ids = [id_ for id_ in session.pool.ids if id_.startswith("train/")]
    for digit in of:
        own = [id_ for id_ in ids if id_.startswith(f"train/{digit}/")][:count]
        session.answer([Answer(id_, NAMES[digit]) for id_ in own])


def published(session: Session) -> dict[str, Any]:
    """Press Publish, and return how it ended."""
    state = session.publish()
    while state["publish"]["is_running"]:
        state = session.wait(state["revision"], 60)
    return dict(state["publish"])


@pytest.mark.server
def test_a_running_server_names_a_new_class(
    few_digits: Path, copy_model: Callable[[Path], Path], start_server: Callable[..., Any], tmp_path: Path
):
    """Answers become a model of their own; a new class is served soon, and stored; labelling can begin from the store."""
    base, names = copy_model(tmp_path / "models"), tmp_path / "models" / "names"
    server = start_server(tmp_path / "models", "--watch-s", "0.1", "--lookup", str(tmp_path / "lookup"))
    settings = LabelSettings(
        few_digits, tmp_path / "labels.csv", model=base, version=1, publish=names, collection="known",
        target=server.target,
    )  # fmt: skip
    session = session_of(settings, network_of(settings))
    answer(session, "01", 10)
    line = "version 1 is published, of 20 labels; 20 labels are in collection known"
    assert published(session) == {"model": str(names), "is_running": False, "version": 1, "message": line}
    metrics = json.loads((names / "1" / "metrics.json").read_bytes())
    assert (metrics["network_of_model"], metrics["network_of_version"]) == ("digits", 1)
    photos = sorted((few_digits / "test" / "2").iterdir())
    with Client(server.target) as client:
        before = client.classify(photos, model="names")
        assert (before.version, {result.label for result in before.results} <= {"zero", "one"}) == (1, True)
        answer(session, "2", 10)
        assert published(session)["version"] == 2
        after = client.classify(photos, model="names")
    assert (after.version, {result.label for result in after.results}) == (2, {"it's two"})
    session.close()
    again = replace(settings, labels=tmp_path / "again.csv", collection="", from_collection="known")
    session = session_of(again, network_of(again))
    assert session.state()["labelled"] == 30
    session.close()


@pytest.mark.server
def test_what_a_command_refuses_is_one_line(digits: Path, models: Path, file: LabelsFile, tmp_path: Path):
    """Too few photos of a class are named by the command's own line, and nothing is published."""
    name(file, digits, "012", 3)
    publisher = Publisher(file, digits, tmp_path / "names", Base(models / "digits"))
    publisher.start()
    publisher.wait()
    state = publisher.state()
    assert (state["is_running"], state["version"]) == (False, None)
    assert state["message"].startswith('3 classes have too few photos: "it\'s two" has 3 photos')
    assert not (tmp_path / "names").exists()


@pytest.mark.server
def test_a_stopped_job_publishes_nothing(digits: Path, models: Path, file: LabelsFile, tmp_path: Path):
    """stop() ends the command, and no other begins."""
    name(file, digits, "01", 10)
    publisher = Publisher(file, digits, tmp_path / "names", Base(models / "digits"))
    publisher.start()
    publisher.stop()
    assert publisher.state()["message"] == "stopped"
    publisher.start()
    assert not publisher.state()["is_running"]
    assert not (tmp_path / "names").exists()


def test_one_class_is_not_published(file: LabelsFile, digits: Path, tmp_path: Path):
    """Labels of one class would make a model of novelty; the line says what is needed. Spellings of a name are one."""
    publisher = Publisher(file, digits, tmp_path / "names", Base(arch="tiny5", weights="w.pt"))
    for count, line in ((0, "there are no labels yet"), (1, "all labels are 'zero'")):
        name(file, digits, "0", count)
        publisher.start()
        publisher.wait()
        assert publisher.state()["message"] == f"{line}; label photos of at least two classes first"
    with pytest.raises(LabelError):
        check_classes(["\u00fcber", "u\u0308ber"])


def test_each_base_has_its_command(models: Path, file: LabelsFile, tmp_path: Path):
    """New networks are trained frozen, models get an SVM, their own or in another folder; the commands take the words."""
    labels, new, old = tmp_path / "l.csv", tmp_path / "new", models / "digits"

    def settings(kind: Any, base: Base, model: Path) -> Any:
        words = Publisher(file, tmp_path, model, base).command(labels)
        parser = Parser(prog="penult")
        kind.add_arguments(parser)
        return words[0], kind.load(parser.parse_args(words[1:]))

    name, found = settings(TrainSettings, Base(arch="tiny5", weights="w.pt"), new)
    assert (name, found.out, found.arch, found.weights, found.freezes_all) == ("train", new, "tiny5", "w.pt", True)
    name, found = settings(RefitSettings, Base(old, 1), new)
    assert (name, found.model, found.version, found.published) == ("svm", old, 1, new)
    assert settings(RefitSettings, Base(old, 1), old)[1].version == 1
    name, found = settings(RefitSettings, Base(arch="tiny5", weights="w.pt"), old)
    assert (name, found.published, found.version) == ("svm", old, None)
    assert (found.images, found.skip_missing) == (tmp_path, True)


def test_a_base_that_cannot_be_published_is_refused(models: Path, file: LabelsFile, tmp_path: Path):
    """A repository as the model, an absent base and random weights are refused before anything is labelled."""
    for model, base, line in (
        (models, Base(arch="tiny5", weights="w.pt"), "is a repository"),
        (tmp_path / "new", Base(models / "digits", 9), "has no version 9"),
        (tmp_path / "new", Base(arch="tiny5", weights="none"), "--publish needs a network"),
    ):
        with pytest.raises((BundleError, LabelError), match=line):
            Publisher(file, tmp_path, model, base)


def test_the_line_that_fine_tunes_is_quoted(models: Path):
    """Spaces and quotes survive a shell; a model's own architecture is named."""
    line = train_command(["my labels.csv", "--images", "it's"], Path("models/x"), Base(arch="tiny5", weights="w $.pt"))
    assert shlex.split(line) == [
        *("penult", "train", "my labels.csv", "--images", "it's", "--out", "models/x"),
        *("--arch", "tiny5", "--weights", "w $.pt"),
    ]
    own = train_command(["l.csv"], Path("models/x"), Base(models / "digits"))
    assert own.endswith("--arch tiny5 --weights none")  # there are no ImageNet weights to begin with
