"""The session: what is handed out, what is written, what is refused, and what the classifier adds to it."""

import csv
from itertools import count as counting

import numpy as np
import pytest

from penult.export.data.splitting import Photo
from penult.label.errors import Conflict, InvalidAnswer, LabelError
from penult.label.labels_file import LabelsFile
from penult.label.pool import Pool
from penult.label.session import Answer, Session

CLASSES = ("ant", "bee", "cat")
PER_CLASS = 20
WAIT_S = 60.0


def truth(id_: str) -> str:
    """Return the class of a photo of the pool below."""
    return id_.partition("/")[0]


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Sixty photos of three classes that are easily told apart."""
    root, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(1)
    ids = tuple(f"{name}/{number:02}.jpg" for name in CLASSES for number in range(PER_CLASS))
    centers = np.repeat(random.normal(size=(len(CLASSES), 16)), PER_CLASS, axis=0)
    inputs = (centers + 0.5 * random.normal(size=centers.shape)).astype(np.float32)
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    photos = tuple(Photo(root / id_, -1, f"{row:064x}") for row, id_ in enumerate(ids))
    return Pool(root, ids, photos, inputs, np.arange(len(ids)), "a network")


@pytest.fixture
def begin(pool, tmp_path):
    """Return a function that begins a session on one label file, and ends the one before."""
    sessions = []

    def start(classes=CLASSES, **more) -> Session:
        if sessions:
            sessions[-1].close()
        sessions.append(Session(pool, LabelsFile(tmp_path / "labels.csv", pool.root), classes, **more))
        return sessions[-1]

    yield start
    sessions[-1].close()


def written(tmp_path) -> dict[str, str]:
    """Return image and label of each row of the file."""
    with (tmp_path / "labels.csv").open(newline="") as file:
        return {row["image"]: row["label"] for row in csv.DictReader(file)}


def fitted(session, labels: int) -> dict:
    """Return the state once the classifier knows so many labels."""
    state = session.state()
    while state["fitted_labels"] != labels:
        after = state["revision"]
        state = session.wait(after, WAIT_S)
        assert state["revision"] > after, "the classifier was not fitted"
    return state


def label_some(session, number: int) -> None:
    """Answer the next photos by the truth."""
    for _ in range(number):
        (item,) = session.next(1)
        session.answer([Answer(item["id"], truth(item["id"]))])


def test_an_answer_is_in_the_file(begin, tmp_path):
    """The row is there when answer() returns, and the state counts it."""
    session = begin()
    (item,) = session.next(1)
    state = session.answer([Answer(item["id"], "bee", was=None)])
    assert written(tmp_path) == {item["id"]: "bee"}
    assert state["labelled"] == 1
    assert [each["count"] for each in state["classes"]] == [0, 1, 0]


def test_a_file_is_continued(begin, tmp_path, pool):
    """Labels of an earlier session are known, their photos are not asked again, and the curve has their past."""
    label_some(begin(), 56)
    session = begin(classes=())
    assert fitted(session, 56)["labelled"] == 56
    assert {each["name"] for each in session.state()["classes"]} == set(CLASSES)
    state = session.state()
    assert state["curve"][0][0] < 56
    assert state["accuracy"]["low"] <= state["accuracy"]["value"] <= state["accuracy"]["high"]
    assert not {item["id"] for item in session.next(60)} & set(written(tmp_path))


def test_two_pages_get_different_photos(begin, pool):
    """A photo is with one page at a time, until it is answered or the page gives no sign any more."""
    now = counting()
    session = begin(clock=lambda: float(next(now)) / 1000)
    first = {item["id"] for item in session.next(30)}
    second = {item["id"] for item in session.next(40)}
    assert len(first) == 30
    assert first | second == set(pool.ids) and not first & second


def test_a_photo_that_is_not_answered_comes_back(begin, pool):
    """A page that has closed holds no photos for ever; one that renews keeps its own."""
    now = [0.0]
    session = begin(clock=lambda: now[0])
    held = [item["id"] for item in session.next(len(pool.ids))]
    kept, left = held[:5], set(held[5:])
    now[0] = 200.0
    session.next(1, holding=kept)
    now[0] = 400.0
    assert {item["id"] for item in session.next(60)} == left


def test_a_changed_label_is_a_conflict(begin, tmp_path, pool):
    """An answer to what is no longer shown is refused, and nothing of its group is written."""
    session = begin()
    session.answer([Answer(pool.ids[0], "ant", was=None)])
    with pytest.raises(Conflict, match="has the label 'ant'") as refused:
        session.answer([Answer(pool.ids[1], "bee", was=None), Answer(pool.ids[0], "bee", was=None)])
    assert (refused.value.image, refused.value.label) == (pool.ids[0], "ant")
    assert written(tmp_path) == {pool.ids[0]: "ant"}
    session.answer([Answer(pool.ids[0], "bee", was="ant")])
    assert written(tmp_path) == {pool.ids[0]: "bee"}


def test_take_back_and_skip(begin, tmp_path, pool):
    """A label that is taken back is gone from the file; a photo that was skipped comes again when all others are done."""
    session = begin()
    skipped, taken, *others = pool.ids
    session.answer([Answer(skipped, skip=True), Answer(taken, "ant")])
    session.answer([Answer(taken, None, was="ant")])
    assert written(tmp_path) == {}
    assert skipped not in {item["id"] for item in session.next(len(pool.ids))}
    state = session.answer([Answer(id_, truth(id_)) for id_ in (taken, *others)])
    assert (state["labelled"], state["skipped"]) == (len(pool.ids) - 1, 1)
    assert [item["id"] for item in session.next(5)] == [skipped]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer("../secret.jpg", "ant"), "no photo '../secret.jpg'"),
        (Answer("ant/00.jpg", " "), "1 to 100 printable"),
        (Answer("ant/00.jpg", "a\nb"), "1 to 100 printable"),
        (Answer("ant/00.jpg", "x" * 101), "1 to 100 printable"),
    ],
)
def test_what_cannot_be_an_answer(begin, tmp_path, answer, why):
    """Unknown photos and impossible names are refused in one line, and nothing is written."""
    session = begin()
    with pytest.raises(InvalidAnswer, match=why):
        session.answer([Answer("bee/00.jpg", "bee"), answer])
    assert written(tmp_path) == {}


def test_a_new_class_is_one_spelling(begin):
    """A class may come with an answer; blanks around it and the Unicode form make no second class."""
    session = begin()
    session.add_class("fée")
    session.answer([Answer("ant/00.jpg", " fe\u0301e ")])
    assert [each["name"] for each in session.state()["classes"]] == [*CLASSES, "fée"]


def test_it_learns(begin):
    """After some labels the guesses are right, the grid holds one class, and neighbours have labels."""
    session = begin()
    label_some(session, 18)
    fitted(session, 18)
    items = session.next(12)
    assert sum(item["guess"] == truth(item["id"]) for item in items) >= 11
    assert all(item["neighbours"][0]["label"] == truth(item["id"]) for item in items if item["probability"] > 0.9)
    assert {truth(item["id"]) for item in session.grid("cat", 8)} == {"cat"}


def test_a_wrong_label_is_asked_about_once(begin, pool):
    """A label that the others contradict is a suspect, until a person confirms it."""
    session = begin()
    session.answer(
        [Answer(id_, "cat" if id_ == "ant/07.jpg" else truth(id_)) for id_ in (*pool.ids[::2], "ant/07.jpg")]
    )
    suspects = fitted(session, 31)["suspects"]
    assert [(each["id"], each["label"], each["suggested"]) for each in suspects] == [("ant/07.jpg", "cat", "ant")]
    assert session.answer([Answer("ant/07.jpg", "cat", was="cat")])["suspects"] == []


def test_another_programs_rows_are_taken_over(begin, tmp_path):
    """What a spreadsheet has written beside the session is in the state, and stays in the file."""
    session = begin()
    session.answer([Answer("ant/00.jpg", "ant")])
    with (tmp_path / "labels.csv").open("a", newline="") as file:
        file.write("bee/00.jpg,wasp,,\n")
    state = session.answer([Answer("cat/00.jpg", "cat")])
    assert written(tmp_path) == {"ant/00.jpg": "ant", "bee/00.jpg": "wasp", "cat/00.jpg": "cat"}
    assert [each["name"] for each in state["classes"]] == [*CLASSES, "wasp"]


def test_publishing_needs_a_model(begin):
    """Without a model's name the button's request is one line."""
    with pytest.raises(LabelError, match="--publish models/NAME"):
        begin().publish()
