"""Play labelling with known labels, to show how many labels the choice of photos saves."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count as counting
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from penult.bundle.scores import Floats
from penult.console import print_table, progress, say
from penult.export.data.splitting import hold_out
from penult.export.disk import writing
from penult.export.jobs.frozen_descriptors import FrozenNetwork
from penult.folders.names import printable
from penult.label.errors import LabelError
from penult.label.exchange import read_labels
from penult.label.learner import Fit, Learner
from penult.label.pool import Pool, load_pool
from penult.label.settings import ACTIVE, RANDOM, LabelSettings
from penult.label.strategies import Situation, choose

# So many photos are chosen at once, about as many as the page has loaded ahead.
_AHEAD = 5
# Accuracy is measured every so many labels. For a picture, the steps grow with the labels by this share.
EVERY = 10
_GROWTH = 0.1
# What is set aside to measure on if the file has no test images.
_TEST_SHARE = 0.2
# For a table and a picture, so many seeds are played.
_SEEDS = 3
_SHOWN = (10, 20, 50, 100, 200, 300, 500, 1000, 2000, 5000, 10_000)


@dataclass(frozen=True)
class Truth:
    """Photos with known labels.

    Attributes:
        inputs: Descriptors of the pool, of length 1, float32 [N, length].
        groups: A number for each photo that near-copies share, int64 [N].
        labels: int64 [N].
        test_inputs: Descriptors of the photos to measure on, float32 [m, length].
        test_labels: int64 [m].
        classes: Their names.
    """

    inputs: Floats
    groups: NDArray[np.int64]
    labels: NDArray[np.int64]
    test_inputs: Floats
    test_labels: NDArray[np.int64]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Played:
    """Accuracy on the test photos by the number of labels."""

    strategy: str
    curve: tuple[tuple[int, float], ...]

    def as_json(self) -> dict[str, object]:
        """Return what --json prints."""
        return {"strategy": self.strategy, "curve": [[labels, round(value, 6)] for labels, value in self.curve]}


def play(truth: Truth, strategy: str, budget: int = 0, seed: int = 0, growth: float = 0.0) -> Played:
    """Label photos of the pool in the order of a strategy, and measure after every 10 labels.

    The classifier is that of the page, for both strategies.

    Args:
        truth: The photos.
        strategy: "active" or "random".
        budget: How many labels; 0 for all.
        seed: Of random choices.
        growth: The steps between measurements are at least this share of the labels.
    """
    with threadpool_limits(1):  # as the page learns; see penult.label.server
        return _play(truth, strategy, budget, seed, growth)


def _play(truth: Truth, strategy: str, budget: int, seed: int, growth: float) -> Played:
    total = min(budget or len(truth.labels), len(truth.labels))
    fits, curve, rows, due = _Fits(truth, seed), [], list[int](), EVERY
    for row in progress(_order(truth, fits, strategy, seed, rows), f"{strategy} choice", total):
        rows.append(row)
        if len(rows) == min(due, total):
            fits.fit(rows)
            hits = fits.learner.answers(truth.test_inputs) == truth.test_labels
            curve.append((len(rows), float(hits.mean())))
            due += max(EVERY, int(growth * len(rows)) // EVERY * EVERY)
        if len(rows) == total:
            break
    return Played(strategy, tuple(curve))


class _Fits:
    """Fits to the labels so far, each once."""

    def __init__(self, truth: Truth, seed: int) -> None:
        self.learner = Learner(truth.inputs, truth.groups, seed)
        self._truth, self._count = truth, 0
        self._fit: Fit | None = None

    def fit(self, rows: Sequence[int]) -> Fit:
        """Return the fit to these rows, which only grow."""
        if self._fit is None or len(rows) != self._count:
            known = np.array(rows, np.intp)
            self._fit = self.learner.fit(known, self._truth.labels[known], len(self._truth.classes))
            self._count = len(rows)
        return self._fit


def _order(truth: Truth, fits: _Fits, strategy: str, seed: int, rows: Sequence[int]) -> Iterator[int]:
    """Yield photos to label; `rows` are those labelled so far."""
    random = np.random.default_rng(seed)
    if strategy == RANDOM:
        yield from random.permutation(len(truth.labels)).tolist()
        return
    is_open = np.ones(len(truth.labels), bool)
    while is_open.any():
        known = np.array(rows, np.intp)
        labels = truth.labels[known]
        situation = Situation(
            truth.inputs, truth.groups, known, labels, truth.classes,
            fits.fit(rows) if len(set(labels.tolist())) > 1 else None,
            np.flatnonzero(is_open),
            checked=frozenset(rows),  # the truth needs no second look
        )  # fmt: skip
        for pick in choose(situation, random, _AHEAD, len(rows)):
            is_open[pick.row] = False
            yield pick.row


def truth_of(settings: LabelSettings, network: FrozenNetwork) -> Truth:
    """Return the photos of --replay, described.

    Raises:
        PenultError: The file cannot be read, or has fewer than two classes in its pool.
    """
    assert settings.replay
    pool = load_pool(settings.folder, network)
    found = read_labels(settings.replay, settings.folder, pool.ids)
    classes = tuple(sorted(set(found.labels.values())))
    place = {name: number for number, name in enumerate(classes)}
    labels = np.array([place.get(found.labels.get(id_, ""), -1) for id_ in pool.ids], np.int64)
    splits = np.array([found.splits.get(id_, "") for id_ in pool.ids])
    train, test = np.flatnonzero(splits == "train"), np.flatnonzero(splits == "test")
    name = printable(settings.replay.name)
    if others := int((splits == "val").sum()):
        say(f"note: {others} images of {name} have the split val; they are neither labelled nor measured")
    if found.missing:
        say(f"note: {len(found.missing)} images of {name} are not in the folder")
    if len(set(labels[train].tolist())) < 2:
        raise LabelError("REPLAY", f"{name} has fewer than two classes of split train in the folder; add rows")
    if not len(test):
        train, test = _set_aside(pool, labels, train, settings.seed)
        say(f"note: {name} has no rows of split test; {len(test)} images are set aside to measure on")
    return Truth(
        pool.inputs[train], pool.groups[train], labels[train], pool.inputs[test], labels[test], classes
    )  # fmt: skip


def _set_aside(
    pool: Pool, labels: NDArray[np.int64], train: NDArray[np.intp], seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    row = {pool.photos[each].path: each for each in train.tolist()}
    photos = [replace(pool.photos[each], label=int(labels[each])) for each in train.tolist()]
    parts = hold_out(photos, _TEST_SHARE, str(seed), 1)
    kept, out = (np.sort(np.array([row[photo.path] for photo in part], np.intp)) for part in parts)
    return kept, out


# -- both strategies, as a table and a picture -------------------------------------------------------------------------


def compare(settings: LabelSettings, truth: Truth) -> Path:
    """Play both strategies with several seeds, print a table and a sentence, and draw; return the picture's path."""
    assert settings.replay
    seeds = range(settings.seed, settings.seed + _SEEDS)
    played = {
        name: [play(truth, name, settings.budget, seed, _GROWTH).curve for seed in seeds] for name in (ACTIVE, RANDOM)
    }
    sizes = [labels for labels, _ in played[ACTIVE][0]]
    found = {name: np.array([[value for _, value in curve] for curve in curves]) for name, curves in played.items()}
    shown = [number for number, size in enumerate(sizes) if size in _SHOWN or number == len(sizes) - 1]
    print_table(
        ["labels", "chosen", "random"],
        [[f"{sizes[n]}", *(f"{100 * found[each][:, n].mean():.1f} %" for each in (ACTIVE, RANDOM))] for n in shown],
    )
    print(sentence(sizes, *(found[each].mean(axis=0).tolist() for each in (ACTIVE, RANDOM))))
    out = settings.out or settings.replay.with_name(f"{settings.replay.stem}-replay.svg")
    with writing(out):
        out.write_bytes(_drawn(sizes, found, out.suffix.lower() == ".png"))
    return out


def sentence(sizes: Sequence[int], chosen: Sequence[float], random: Sequence[float]) -> str:
    """Return how many labels chosen photos need for what random ones reach with half of all labels played."""
    place = next(number for number, size in enumerate(sizes) if 2 * size >= sizes[-1])
    target = random[place]
    needed = next((number for number in counting() if number >= len(sizes) or chosen[number] >= target), 0)
    what = f"{100 * target:.1f} %, the accuracy of {sizes[place]} random labels"
    if needed >= len(sizes):
        return f"chosen labels do not reach {what}"
    share = 1 - sizes[needed] / sizes[place]
    saved = f"{100 * share:.0f} % fewer" if share > 0 else "no fewer" if not share else f"{-100 * share:.0f} % more"
    return f"{sizes[needed]} chosen labels reach {what}: {saved}"


def _drawn(sizes: Sequence[int], found: dict[str, NDArray[np.float64]], is_png: bool) -> bytes:
    from penult import drawing  # matplotlib takes a second

    looks = {ACTIVE: (drawing.BLUE, "-", "chosen"), RANDOM: (drawing.VERMILION, "--", "random")}
    with drawing.style():
        figure = drawing.figure(6.4, 3.8)
        axis = figure.subplots()
        for name, values in found.items():
            colour, line, label = looks[name]
            axis.plot(sizes, 100 * values.mean(axis=0), line, color=colour, lw=1.8, label=label)
            axis.fill_between(sizes, 100 * values.min(axis=0), 100 * values.max(axis=0), color=colour, alpha=0.15, lw=0)
        axis.set_title(f"Accuracy on the test photos; bands: lowest and highest of {_SEEDS} runs", color=drawing.INK)
        axis.set_xlabel("labels")
        axis.set_ylabel("accuracy (%)")
        axis.set_xlim(0, sizes[-1])
        axis.legend(loc="lower right")
        return drawing.png(figure) if is_png else drawing.svg(figure)
