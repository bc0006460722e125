"""What a person sees of a sweep: a table, a sentence of advice, CSV, and a picture."""

import csv
import io
import math
from collections import Counter
from dataclasses import asdict, fields

import numpy as np

from penult.export.evaluate import wilson
from penult.export.settings import ALL_STAGES
from penult.export.sweep import REINIT, Outcome, Sweep

_WORTH_LABELLING = 0.01
AXES = {"freeze": "stages frozen", "labels": "labels per class"}


def table(sweep: Sweep) -> list[list[str]]:
    """Return rows for a person: mode, place, validation and test accuracy (means over repeats), the scorer chosen."""
    rows = []
    for mode in sweep.modes():
        for at, repeats in sweep.points(mode).items():
            val, test = (mean(repeats, name) for name in ("val_accuracy", "test_accuracy"))
            scorer = Counter(outcome.scorer for outcome in repeats).most_common(1)[0][0]
            rows.append([mode, place(sweep.kind, at), f"{val:.1%}", f"{test:.1%}", scorer])
    return rows


def to_csv(sweep: Sweep) -> str:
    """Return the text of table.csv: a row per trial."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Outcome)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(outcome) for outcome in sweep.outcomes)
    return text.getvalue()


def mean(outcomes: list[Outcome], name: str) -> float:
    """Return the mean of one figure over repeats."""
    return float(np.mean([getattr(outcome, name) for outcome in outcomes]))


def place(kind: str, at: int) -> str:
    """Name a place on the axis of a kind of sweep."""
    return "all" if kind == "freeze" and at > ALL_STAGES else str(at)


def interval(found: list[Outcome], test_photos: int) -> tuple[float, float]:
    """Return the 95 % interval of a mean test accuracy, widened where the repeats differ by more than that.

    Repeats have other seeds and the same test photos, so they do not narrow it.
    """
    accuracies = [outcome.test_accuracy for outcome in found]
    low, high = wilson(float(np.mean(accuracies)), test_photos)
    return min(low, *accuracies), max(high, *accuracies)


def step(first: list[Outcome], last: list[Outcome], test_photos: int) -> tuple[float, float]:
    """Return the 95 % interval of what the step from `first` to `last` brought (Newcombe 1998, method 10).

    It takes both accuracies for independent. They are of the same photos, so it errs on the wide side.
    """
    low, high = mean(first, "test_accuracy"), mean(last, "test_accuracy")
    (low_from, low_to), (high_from, high_to) = interval(first, test_photos), interval(last, test_photos)
    least = high - low - math.hypot(high - high_from, low_to - low)
    return least, high - low + math.hypot(high_to - high, low - low_from)


def advice(sweep: Sweep) -> str:
    """Return one sentence on what to do. Validation photos choose; what labels brought is read off the test photos."""
    return _freeze_advice(sweep) if sweep.kind == "freeze" else _label_advice(sweep)


def best_freeze(sweep: Sweep) -> tuple[str, int]:
    """Return mode and place that are best on validation photos; of equals the one that keeps more, and is faster."""
    found = {(mode, at): mean(o, "val_accuracy") for mode in sweep.modes() for at, o in sweep.points(mode).items()}
    return max(found, key=lambda key: (found[key], key[1]))


def _freeze_advice(sweep: Sweep) -> str:
    mode, at = best_freeze(sweep)
    options = f"--freeze {place(sweep.kind, at)}" + (" --reinit" if mode == REINIT else "")
    return f"best on validation photos: {options} ({mean(sweep.points(mode)[at], 'val_accuracy'):.1%})"


def _label_advice(sweep: Sweep) -> str:
    """Say what the last step in labels brought, and what a doubling may: errors fall as a power of the count.

    Source: Hestness et al. 2017, "Deep learning scaling is predictable, empirically".
    """
    best = max(sweep.modes(), key=lambda mode: mean(list(sweep.points(mode).values())[-1], "val_accuracy"))
    if len(sweep.points(best)) < 2:
        return "too few photos per class to tell what more labels would bring"
    (before, first), (now, last) = list(sweep.points(best).items())[-2:]
    low, high = mean(first, "test_accuracy"), mean(last, "test_accuracy")
    seen = f"{best}: from {before} to {now} photos per class {low:.1%} became {high:.1%}"
    gain = _doubling(before, 1 - low, now, 1 - high)
    least, most = step(first, last, sweep.test_photos)
    # The errors of the last place may be as many as its interval allows, and the step as large as its own does.
    errors = 1 - interval(last, sweep.test_photos)[0]
    gain_at_most = _doubling(before, errors + most, now, errors)
    if gain_at_most >= _WORTH_LABELLING and (least <= 0 or gain < _WORTH_LABELLING):
        return (
            f"{seen}; as far as {sweep.test_photos} test photos tell, twice as many may bring nothing or "
            f"{100 * gain_at_most:.1f} points: too few to say whether to label more; test on more (--test, or "
            "DATA/test) and sweep again"
        )
    verdict = "label more" if gain >= _WORTH_LABELLING else "more labels of the same kind will bring little"
    return f"{seen}; twice as many may bring {100 * gain:+.1f} points: {verdict}"


def _doubling(before: int, error_before: float, now: int, error_now: float) -> float:
    """Return how much error a doubling would take away, by the power law through two points."""
    if not 0 < error_now < error_before:
        return 0.0
    slope = math.log(error_now / error_before) / math.log(now / before)
    return error_now * (1 - 2**slope)
