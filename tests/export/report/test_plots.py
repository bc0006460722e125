"""The pictures: drawn for any run, readable on a phone, in light and dark, and showing what they claim to show."""

import re
from collections.abc import Callable, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from penult.drawing import inline
from penult.export.evaluation.confusions import Confusions
from penult.export.evaluation.diagnosis import diagnose
from penult.export.evaluation.metrics import calibration
from penult.export.networks.weight_changes import CONV, STATISTICS, LayerChange
from penult.export.report.descriptor_map import DescriptorMap
from penult.export.report.figures import draw_figures
from penult.export.report.plot_learning import learning_curves
from penult.export.report.plot_network import first_filters, relative_changes
from penult.export.report.plot_photos import descriptor_map
from penult.export.report.plot_scorers import accuracies, confusion, reliability, searched, svm_search
from penult.export.report.plot_style import label, short
from penult.export.report.report_data import ReportData

_SVG = "{http://www.w3.org/2000/svg}"


def _texts(drawn: bytes) -> list[str]:
    """Return the texts of an SVG, which must be well-formed XML."""
    return ["".join(text.itertext()) for text in ElementTree.fromstring(drawn).iter(f"{_SVG}text")]


def _has(drawn: bytes, colour: str) -> bool:
    """Tell whether something is drawn in exactly this colour."""
    return bool(re.search(f"(fill|stroke): {colour}", drawn.decode()))


def _answers(classes: Sequence[str], wrong: int = 3) -> Confusions:
    """Twenty photos, of which one is named wrong."""
    labels = np.arange(20) % len(classes)
    return Confusions(tuple(classes), labels, (labels + (np.arange(20) == wrong)) % len(classes))


@pytest.fixture(scope="module")
def drawn_once() -> list[Any]:
    """The run whose pictures several tests read, and these pictures and tables, once they are drawn."""
    return []


@pytest.fixture
def figures(
    report_data: Callable, made_up_history: Callable, drawn_once: list[Any]
) -> tuple[ReportData, dict[str, bytes], dict[str, bytes]]:
    """A run with two phases, its pictures and its tables."""
    if not drawn_once:
        made = report_data(("cat", "dog"), history=made_up_history(4, ("head", "all")))
        drawn_once.extend((made, *draw_figures(made, dict.fromkeys(made.scores, _answers(made.splits.classes)))))
    return tuple(drawn_once)


def test_text_can_be_read_on_a_phone(figures: tuple[Any, ...]):
    """No text of any picture is smaller than 11 CSS pixels in 346, which a phone of 390 leaves; matrices may scroll."""
    for name, drawn in figures[1].items():
        width = float(ElementTree.fromstring(drawn).attrib["viewBox"].split()[2])
        sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", drawn.decode())]
        assert sizes, name
        assert min(sizes) * 346 / width >= 11, name


def test_pictures_follow_light_and_dark(figures: tuple[Any, ...]):
    """No picture has ink, lines or a background of its own: what is grey or black is a variable, alone and in a page."""
    fixed = re.compile(r"(?:fill|stroke): #(?:000000|ffffff|2f2f2f|767676|e6e6e6)")
    for name, drawn in figures[1].items():
        assert not fixed.search(drawn.decode()), name
        assert b"var(--ink, #2f2f2f)" in drawn
        assert b"prefers-color-scheme:dark" in drawn
        assert "<style" not in inline(drawn, "x", "a picture")


_NAMES = (
    "$_{$", "US$ and CA$", "a$b", "\\frac{1}", "100%", "_^", "🐱", "猫", "ไทย", "قطة", "<b>&", "fill: #2f2f2f", "x" * 200,
)  # fmt: skip


@pytest.mark.parametrize("names", [_NAMES[:7], _NAMES[7:]])
def test_any_class_name_can_be_drawn(report_data: Callable, names: tuple[str, ...]):
    """Dollar signs, other scripts, emoji and endless names are text in the picture, for the reader's fonts to draw."""
    made = report_data(names)
    matrix = [text.strip() for text in _texts(confusion(_answers(names), "svm"))]
    assert [name for name in names if short(name) not in matrix] == []
    points = DescriptorMap(np.arange(20), made.descriptors[:, :2], 0.5, None)
    drawn = [text.strip() for text in _texts(descriptor_map(points, made.labels, np.arange(20) != 3, names))]
    assert [name for name in names if short(name, 14) not in drawn] == []


def test_control_characters_are_replaced():
    """What XML has no place for is drawn as a replacement mark."""
    assert "a\ufffdb" in [text.strip() for text in _texts(confusion(_answers(("a\x07b", "other")), "svm"))]


@pytest.mark.parametrize(
    ("epochs", "phases"), [(1, ("head",)), (1, ("head", "all")), (2, ("all",)), (40, ("head", "all"))]
)
def test_any_history_can_be_drawn(made_up_history: Callable, phases: tuple[str, ...], epochs: int):
    """One phase or two, one epoch or many: each phase has its curves."""
    history = made_up_history(epochs, phases)
    for phase in phases:
        assert _has(learning_curves(history.phase(phase), diagnose(history, 2)), "#d55e00") or epochs == 1


def test_the_last_phase_has_the_fixed_name(figures: tuple[Any, ...]):
    """Two phases have two pictures; the one named learning_curves.svg is the last phase's."""
    made, pictures, _ = figures
    for name, phase in (("learning_curves.svg", "all"), ("learning_curves_head.svg", "head")):
        assert pictures[name] == learning_curves(made.learning.history.phase(phase), made.learning.diagnosis)


def test_over_fitting_is_shaded(made_up_history: Callable):
    """The shade of over-fitting is there where the zones are, and only there."""
    epochs = made_up_history(12).epochs
    diagnosis = diagnose(made_up_history(12), 2)
    for zone in ("good", "over-fit"):
        object.__setattr__(diagnosis, "zones", {"all": ("good",) * 6 + (zone,) * 6})
        assert _has(learning_curves(epochs, diagnosis), "#e69f00") == (zone == "over-fit")


def test_many_classes_can_be_drawn():
    """Thirty classes have their names, more a matrix of numbers that is no larger than that of two."""
    two, thirty, forty, very_many = (
        confusion(_answers([f"class {n}" for n in range(count)]), "svm") for count in (2, 30, 40, 10_000)
    )
    assert "class 29" in [text.strip() for text in _texts(thirty)]
    for drawn in (forty, very_many):
        assert "true class, by number" in _texts(drawn)
        assert not any(text.startswith("class ") for text in _texts(drawn))
        assert len(drawn) < 40_000
        assert drawn.split(b'viewBox="')[1].split()[2] == two.split(b'viewBox="')[1].split()[2]


@pytest.mark.parametrize(("count", "size"), [(16, 3), (64, 11), (200, 7), (1, 3)])
def test_filters_show_before_after_and_difference(count: int, size: int):
    """Filters of any size and number are drawn; where nothing changed, they are drawn once."""
    before = np.random.default_rng(0).normal(size=(count, 3, size, size)).astype(np.float32)
    same, other = first_filters(before, before, "conv1"), first_filters(before, before * 1.5, "conv1")
    assert (same.count(b"<image"), other.count(b"<image")) == (1, 3)
    assert {"conv1", "unchanged, bit-identical"} <= set(_texts(same))


def test_constant_filters_can_be_drawn():
    """A filter of equal values has no range to be stretched to."""
    zeros = np.zeros((4, 3, 3, 3), np.float32)
    assert first_filters(zeros, zeros, "conv1").count(b"<image") == 1
    assert first_filters(zeros, zeros + 1, "conv1").count(b"<image") == 3


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
        assert {"0.9", "C"} & set(_texts(svm_search(svm))) == {"C"}
    assert svm_search({"kernel": "linear", "c": 1.0}) is None
    assert svm_search({}) is None


def test_scorers_are_compared_in_their_colours(report_data: Callable):
    """Bars of both scorers are there, one scorer alone has only its own."""
    both, dense = report_data(("cat", "dog")), report_data(("cat", "dog"), scorers=("dense",))
    assert [_has(accuracies(made.metrics), "#aa4499") for made in (both, dense)] == [True, False]
    assert all(_has(accuracies(made.metrics), "#009e73") for made in (both, dense))


@pytest.mark.parametrize("count", [1, 40, 1000])
def test_any_calibration_can_be_drawn(count: int):
    """One photo or a thousand, all right or all wrong: the diagram is drawn."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1, 1, 1], count)
    for labels in (probabilities.argmax(1), (probabilities.argmax(1) + 1) % 3):
        assert "accuracy" in _texts(reliability({"svm": calibration(probabilities, labels)}))


def test_long_names_are_cut():
    """A long class name ends in dots, a short one stays."""
    assert short("ants") == "ants"
    assert short("x" * 30) == "x" * 19 + "…"
    assert short("猫" * 30) == "猫" * 9 + "…"


def test_names_of_wide_letters_keep_their_room():
    """Letters that matplotlib measures too narrow get room before them, in spaces that do not collapse."""
    assert label("cats") == "cats"
    assert label("猫" * 5).strip("\u00a0") == "猫" * 5
    assert len(label("猫" * 5)) > 9


def test_tables_hold_what_is_drawn(figures: tuple[Any, ...]):
    """reliability.csv and svm_c.csv have a row per point of their pictures."""
    made, _, tables = figures
    bins = sum(len(figures["reliability"]) for figures in made.metrics["test"].values())
    assert len(tables["reliability.csv"].splitlines()) == 1 + bins
    assert tables["svm_c.csv"].decode().splitlines() == ["kernel,c,accuracy", "linear,0.1,0.9", "linear,1.0,0.95"]
