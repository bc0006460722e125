"""The pictures: drawn for any run, narrow enough for a phone, and showing what they claim to show."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from penult.export.changes import CONV, STATISTICS, LayerChange
from penult.export.descriptor_map import DescriptorMap
from penult.export.evaluate import calibration
from penult.export.illustrations import illustrate
from penult.export.pictures import short
from penult.export.pictures_learning import learning_curves
from penult.export.pictures_network import first_filters, relative_changes
from penult.export.pictures_photos import descriptor_map, worst_errors
from penult.export.pictures_scorers import accuracies, confusion, reliability, searched, svm_search
from penult.export.verdict import diagnose


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _has(png: bytes, colour: str) -> bool:
    """Tell whether some pixels have exactly this colour."""
    return bool((_pixels(png) == [int(colour[at : at + 2], 16) for at in (1, 3, 5)]).all(axis=2).any())


def test_pictures_are_narrow_enough_for_a_phone(evidence: Callable):
    """Every picture is at most twice as wide as a phone's screen is in dense pixels, so its text stays legible."""
    for name, png in illustrate(evidence(("cat", "dog")))[0].items():
        assert 600 <= Image.open(io.BytesIO(png)).width <= 780, name


@pytest.mark.parametrize(
    "name", ["$_{$", "US$ and CA$", "a$b", "\\frac{1}", "100%", "_^", "🐱", "猫", "ไทย", "x" * 200]
)
def test_any_class_name_can_be_drawn(evidence: Callable, name: str):
    """Dollar signs, other scripts, emoji and endless names neither stop a run at its end nor print warnings."""
    made = evidence((name, "other"))
    points = DescriptorMap(np.arange(20), made.descriptors[:, :2], 0.5, None)
    right = np.arange(20) != 3
    for picture in (
        confusion((name, "other"), made.metrics["test"]["svm"], "svm"),
        descriptor_map(points, made.labels, right, (name, "other")),
        worst_errors(np.zeros((1, 8, 8, 3), np.uint8), [f"true: {short(name)}\nanswered: other, 99%"]),
    ):
        assert _pixels(picture).std() > 1


def test_a_dollar_sign_is_drawn_as_such(evidence: Callable):
    """A name is drawn as it stands, not as a formula, in which spaces would not show."""
    figures = evidence(("a", "b")).metrics["test"]["svm"]
    drawn = [confusion((name, "b"), figures, "svm") for name in ("$x+y$", "$x + y$")]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("phases", [("all",), ("head",), ("head", "all")])
@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_any_history_can_be_drawn(made_up_history: Callable, phases: tuple[str, ...], epochs: int):
    """One phase or two, one epoch or many: each phase has its curves."""
    history = made_up_history(epochs, phases)
    for phase in phases:
        assert _has(learning_curves(history.phase(phase), diagnose(history, 2)), "#d55e00") or epochs == 1


def test_the_last_phase_has_the_fixed_name(evidence: Callable, made_up_history: Callable):
    """Two phases have two pictures; the one named learning_curves.png is the last phase's."""
    made = evidence(("cat", "dog"), history=made_up_history(4, ("head", "all")))
    pictures = illustrate(made)[0]
    for name, phase in (("learning_curves.png", "all"), ("learning_curves_head.png", "head")):
        assert pictures[name] == learning_curves(made.learning.history.phase(phase), made.learning.verdict)


def test_over_fitting_is_shaded(made_up_history: Callable):
    """The curves' picture differs where only the zones do."""
    epochs = made_up_history(12).epochs
    verdict = diagnose(made_up_history(12), 2)
    drawn = []
    for zone in ("good", "over-fit"):
        object.__setattr__(verdict, "zones", {"all": ("good",) * 6 + (zone,) * 6})
        drawn.append(_pixels(learning_curves(epochs, verdict)))
    assert (drawn[0] != drawn[1]).any(axis=2).mean() > 0.05


def test_many_classes_can_be_drawn(evidence: Callable):
    """Forty classes make a larger matrix, not an error."""
    names = [tuple(f"class {n}" for n in range(count)) for count in (3, 40)]
    small, large = (confusion(classes, evidence(classes).metrics["test"]["svm"], "svm") for classes in names)
    assert Image.open(io.BytesIO(large)).width > 1.5 * Image.open(io.BytesIO(small)).width


@pytest.mark.parametrize(("count", "size"), [(16, 3), (64, 11), (200, 7), (1, 3)])
def test_filters_show_before_after_and_difference(count: int, size: int):
    """Filters of any size and number are drawn; where nothing changed, there is no third panel."""
    before = np.random.default_rng(0).normal(size=(count, 3, size, size)).astype(np.float32)
    same, other = first_filters(before, before, "conv1"), first_filters(before, before * 1.5, "conv1")
    assert _pixels(other).shape[0] > 1.5 * _pixels(same).shape[0]


def test_constant_filters_can_be_drawn():
    """A filter of equal values has no range to be stretched to."""
    zeros = np.zeros((4, 3, 3, 3), np.float32)
    assert first_filters(zeros, zeros, "conv1").startswith(b"\x89PNG")
    assert first_filters(zeros, zeros + 1, "conv1").startswith(b"\x89PNG")


@pytest.mark.parametrize("changes", [(0.0, 0.0), (0.0, 0.03), (1e-7, 40.0), (0.2, 0.2)])
@pytest.mark.parametrize("with_statistics", [True, False])
def test_any_changes_can_be_drawn(changes: tuple[float, float], with_statistics: bool):
    """From all frozen to changes that are millions of times apart; with batch norm and without."""
    layers = [LayerChange(f"l{n}", f"stage {n}", CONV, change) for n, change in enumerate(changes)]
    statistics = [LayerChange(f"b{n}", f"stage {n}", STATISTICS, change) for n, change in enumerate(changes)]
    picture = relative_changes([*layers, *statistics] if with_statistics else layers)
    # The second stage's colour is there where it changed.
    assert _has(picture, "#0072b2") == (changes[1] > 0)


def test_a_network_with_hidden_dense_layers_has_six_stages():
    """Five conv stages and the dense one each have their colour."""
    names = [*(f"stage {n}" for n in range(1, 6)), "dense"]
    picture = relative_changes([LayerChange(name, name, CONV, 0.1) for name in names])
    for colour in ("#56b4e9", "#0072b2", "#009e73", "#e69f00", "#d55e00", "#aa4499"):
        assert _has(picture, colour), colour


def test_the_search_for_c_is_found_wherever_it_stands():
    """metrics["svm"] may hold one search, or several by kernel, in mappings or lists; C is put in order."""
    one = {"kernel": "linear", "c": 1.0, "accuracy_by_c": {"10": 0.8, "1": 0.9}}
    assert list(searched(one).items()) == [("linear", {1.0: 0.9, 10.0: 0.8})]
    rbf = {"kernel": "rbf", "gamma": 0.5, "accuracy_by_c": {"1": 0.7}}
    assert searched(one | {"searches": [rbf]}) == {"linear": {1.0: 0.9, 10.0: 0.8}, "rbf, gamma 0.5": {1.0: 0.7}}
    by_kernel = {"c": 2.0, "kernels": {"linear": {"accuracy_by_c": {"1": 0.9}}, "rbf": {"accuracy_by_c": {"1": 0.8}}}}
    assert set(searched(by_kernel)) == {"linear", "rbf"}
    for svm in (one, one | {"searches": [rbf]}, by_kernel):
        assert svm_search(svm).startswith(b"\x89PNG")
    assert svm_search({"kernel": "linear", "c": 1.0}) is None
    assert svm_search({}) is None


def test_scorers_are_compared_in_their_colours(evidence: Callable):
    """Bars of both scorers are there, one scorer alone has only its own."""
    both, dense = evidence(("cat", "dog")), evidence(("cat", "dog"), scorers=("dense",))
    assert [_has(accuracies(made.metrics), "#aa4499") for made in (both, dense)] == [True, False]
    assert all(_has(accuracies(made.metrics), "#009e73") for made in (both, dense))


@pytest.mark.parametrize("count", [1, 40, 1000])
def test_any_calibration_can_be_drawn(count: int):
    """One photo or a thousand, all right or all wrong: the diagram is drawn."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1, 1, 1], count)
    for labels in (probabilities.argmax(1), (probabilities.argmax(1) + 1) % 3):
        assert reliability({"svm": calibration(probabilities, labels)}).startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [1, 3, 4, 12])
def test_the_worst_errors_are_shown_as_they_are(count: int):
    """A photo's own colour is in the picture, whatever the number of photos."""
    crops = np.full((count, 16, 16, 3), (10, 200, 30), np.uint8)
    assert _has(worst_errors(crops, ["true: a\nanswered: b, 99%"] * count), "#0ac81e")


def test_long_names_are_cut():
    """A long class name ends in dots, a short one stays."""
    assert short("ants") == "ants"
    assert short("x" * 30) == "x" * 19 + "…"


def test_tables_hold_what_is_drawn(evidence: Callable):
    """reliability.csv and svm_c.csv have a row per point of their pictures."""
    made: Any = evidence(("cat", "dog"))
    tables = illustrate(made)[1]
    bins = sum(len(figures["reliability"]) for figures in made.metrics["test"].values())
    assert len(tables["reliability.csv"].splitlines()) == 1 + bins
    assert tables["svm_c.csv"].decode().splitlines() == ["kernel,c,accuracy", "linear,0.1,0.9", "linear,1.0,0.95"]
