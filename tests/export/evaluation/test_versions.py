"""Two versions on the same photos: what changed in which direction, and what it shows."""

import numpy as np
import pytest

from penult.bundle.manifest import Manifest
from penult.bundle.preprocess import Preprocess
from penult.export.evaluation.versions import CHANGES, Answers, Classes, Comparison

_ABC = ("a", "b", "c")


def _comparison(labels: str, before: str, after: str, known: tuple[tuple[str, ...], tuple[str, ...]] = (_ABC, _ABC),
                groups: list[int] | None = None) -> Comparison:  # fmt: skip
    """Return a comparison of answers given as letters, with confidence that rises from photo to photo."""
    classes = Classes.of(*known)
    true = np.array([classes.names.index(letter) for letter in labels], np.int64)
    versions = []
    for number, (answers, names) in enumerate(zip((before, after), known, strict=True), 1):
        scores = np.zeros((len(labels), len(names)), np.float32)
        for row, letter in enumerate(answers):
            scores[row, names.index(letter)] = 1 + row
        manifest = Manifest("tiny5", names, Preprocess(32, 32), 128, "dense", {"dense": 1.0})
        versions.append(Answers.of(number, manifest, "dense", scores, true, classes.places[number - 1]))
    alone = np.arange(len(labels)) if groups is None else np.array(groups)
    return Comparison(classes, true, alone, versions[0], versions[1])


def test_changes_have_a_direction():
    """Right to wrong, wrong to right, wrong to another wrong; equal answers changed nothing. The surest come first."""
    found = _comparison("aaaaaaa", "aabbbca", "bbaacba")
    changes = {name: rows.tolist() for name, rows in found.changes.items()}
    assert changes == dict(zip(CHANGES, ([1, 0], [3, 2], [5, 4]), strict=True))
    assert found.agreement == pytest.approx(1 / 7)
    assert {name: found.outcome[name] for name in ("both_right", "only_before", "only_after", "neither")} == {
        "both_right": 1, "only_before": 2, "only_after": 2, "neither": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "verdict", "said"),
    [
        ("a" * 8, "b" * 7 + "a", "worse", "version 2 is worse by more than chance"),
        ("b" * 7 + "a", "a" * 8, "better", "version 2 is better by more than chance"),
        ("aaaabbbb", "bbbbaaaa", "no difference seen", "chance alone can explain"),
        ("aaaaaaab", "aaaaaaaa", "too few photos differ", "too few photos differ"),
        ("aaaaaaab", "aaaaaaac", "same", "exactly the same photos"),
    ],
)
def test_verdicts(before: str, after: str, verdict: str, said: str):
    """The sentence says whether the difference is more than chance; other wrong answers are no difference."""
    found = _comparison("a" * 8, before, after).outcome
    assert found["verdict"] == verdict
    assert said in found["sentence"]


def test_a_burst_is_one_observation():
    """Seven photos of one moment that become wrong show too little, where seven moments show a worse version."""
    burst = _comparison("a" * 9, "a" * 9, "b" * 7 + "aa", groups=[0] * 7 + [1, 2])
    assert (burst.outcome["verdict"], burst.outcome["only_before"]) == ("too few photos differ", 7)


def test_classes_of_one_version():
    """Common classes come first; an answer of a class that the other version does not know is wrong."""
    found = _comparison("bbaa", "bbaa", "bdaa", known=(("a", "b", "z"), ("d", "a", "b")))
    assert (found.classes.names[:2], found.classes.only(0), found.classes.only(1)) == (("a", "b"), ["z"], ["d"])
    assert found.hits[1].tolist() == [True, False, True, True]
    assert found.after.figures["recall"] == {"d": None, "a": 1.0, "b": 0.5}


def test_classes_are_counted_apart():
    """Each class has its photos, both counts of correct ones, and a p-value adjusted for the number of classes."""
    found = _comparison("a" * 6 + "b" * 2, "a" * 6 + "bb", "b" * 6 + "bb").by_class
    assert (found["a"]["right_before"], found["a"]["right_after"], found["b"]["right_after"]) == (6, 0, 2)
    assert (found["a"]["p_value"], found["b"]["p_value"]) == (pytest.approx(2 * 2 / 64), 1.0)


def test_photos_can_be_left_out():
    """Accuracies and the test are measured again without some photos; if none is left, nothing is."""
    found = _comparison("aaaa", "abaa", "aaab")
    kept = found.without(np.array([0, 0, 0, 1], bool))
    assert (kept["photos"], kept["before"]["accuracy"], kept["after"]["accuracy"]) == (3, pytest.approx(2 / 3), 1.0)
    assert (kept["only_before"], kept["only_after"]) == (0, 1)
    assert found.without(np.ones(4, bool)) == {"photos": 0}
