"""The table, the advice and the CSV of a sweep."""

import csv
import io
import math
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, fields

import numpy as np

from penult.bundle.scores import wilson
from penult.export.config.train import DESCRIPTORS, LAYERS, PENULTIMATE, freeze_text
from penult.export.evaluation.accuracy import between, is_rough, share
from penult.export.jobs.sweep import AS_GIVEN, FINE_TUNED, RANDOM, REINIT, TRAINED, Outcome, Sweep, trial_name

_WORTH_LABELLING = 0.01
# What the mean of equal accuracies may differ by.
_ROUNDING = 1e-9
_NETWORKS = {AS_GIVEN: "as given", FINE_TUNED: "after fine-tuning", TRAINED: "after training"}
AXES = {"freeze": "stages frozen", "labels": "labels per class", "layers": "layer"}


def table(sweep: Sweep) -> list[list[str]]:
    """Return the rows of the table: mode, place, mean validation and test accuracy over repeats, and the scorer."""
    found = []
    for mode in sweep.modes():
        for at, repeats in sweep.points(mode).items():
            val, test = (mean(repeats, name) for name in ("val_accuracy", "test_accuracy"))
            scorer = Counter(outcome.scorer for outcome in repeats).most_common(1)[0][0]
            chosen_on = _stated(val, wilson(val, sweep.val_photos)) if _knows_validation(sweep) else f"{val:.1%}"
            tested = _stated(test, interval(repeats, sweep.test_photos))
            found.append([mode, place(sweep.kind, at), chosen_on, tested, scorer])
    return found


def _stated(accuracy: float, bounds: tuple[float, float]) -> str:
    """Return a mean accuracy as text, or its interval if there are few photos."""
    return between(*bounds) if is_rough(*bounds) else f"{accuracy:.1%}"


def _knows_validation(sweep: Sweep) -> bool:
    """Return True if all trials had the same validation photos; in a sweep over labels their number differs."""
    return sweep.kind in ("freeze", "layers") and sweep.val_photos > 0


def to_csv(sweep: Sweep) -> str:
    """Return the text of table.csv: a row per trial."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Outcome)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(sweep))
    return text.getvalue()


def rows(sweep: Sweep) -> list[dict[str, object]]:
    """Return plain values per trial; `at` is written as --freeze or --descriptor takes it."""
    return [asdict(outcome) | {"at": _named(sweep.kind, outcome.at)} for outcome in sweep.outcomes]


def outcome_line(sweep: Sweep, outcome: Outcome) -> str:
    """Return the progress line of a finished trial."""
    val, test = outcome.val_accuracy, share(round(outcome.test_accuracy * sweep.test_photos), sweep.test_photos)
    val_share = share(round(val * sweep.val_photos), sweep.val_photos) if _knows_validation(sweep) else f"{val:.1%}"
    return (
        f"{trial_name(sweep.kind, outcome)}: validation photos correct: {val_share}, test photos: {test}, "
        f"by the {outcome.scorer} scorer"
    )


def mean(outcomes: list[Outcome], name: str) -> float:
    """Return the mean of one field over repeats."""
    return float(np.mean([getattr(outcome, name) for outcome in outcomes]))


def place(kind: str, at: int) -> str:
    """Return the label of a place on the axis."""
    return str(_named(kind, at))


def _named(kind: str, at: int) -> int | str:
    """Return a place as options take it."""
    if kind == "layers":
        return LAYERS[at]
    return freeze_text(at) if kind == "freeze" else at


def interval(found: list[Outcome], test_photos: int) -> tuple[float, float]:
    """Return the 95 % interval of a mean test accuracy, widened if the repeats differ by more.

    Repeats have other seeds but the same test photos, so they do not narrow it.
    """
    accuracies = [outcome.test_accuracy for outcome in found]
    low, high = wilson(float(np.mean(accuracies)), test_photos)
    return min(low, *accuracies), max(high, *accuracies)


def step(first: list[Outcome], last: list[Outcome], test_photos: int) -> tuple[float, float]:
    """Return the 95 % interval of the gain in accuracy from `first` to `last` (Newcombe 1998, method 10).

    The method assumes independent samples. Both accuracies are measured on the same photos, so the interval is too wide
    rather than too narrow.
    """
    low, high = mean(first, "test_accuracy"), mean(last, "test_accuracy")
    (low_from, low_to), (high_from, high_to) = interval(first, test_photos), interval(last, test_photos)
    least = high - low - math.hypot(high - high_from, low_to - low)
    return least, high - low + math.hypot(high_to - high, low - low_from)


def advice(sweep: Sweep) -> str:
    """Return one sentence on what to do next. Validation photos choose; test photos measure the gain from labels."""
    return {"freeze": _freeze_advice, "labels": _label_advice, "layers": _layer_advice}[sweep.kind](sweep)


def best_freeze(sweep: Sweep) -> tuple[str, int]:
    """Return mode and place to choose: the one with the most frozen stages among those that tie with the best.

    The more is frozen, the faster a run is. At the same depth, continuing wins over re-initialising.
    """
    return max(_ties(sweep)[0], key=lambda key: (key[1], key[0] != REINIT))


def _ties(sweep: Sweep, kept: Collection[tuple[str, int]] | None = None) -> tuple[dict[tuple[str, int], float], float]:
    """Return mode and place of all that tie with the best on validation photos, best first, and the lowest accuracy.

    `kept` are those to choose from, None for all.

    They tie within one standard error of the best, by its Wilson interval or its repeats. This is the
    one-standard-error rule of Breiman et al. 1984, "Classification and regression trees".
    """
    found = {(mode, at): o for mode in sweep.modes() for at, o in sweep.points(mode).items()
             if kept is None or (mode, at) in kept}  # fmt: skip
    accuracy = {key: mean(outcomes, "val_accuracy") for key, outcomes in found.items()}
    ranked = sorted(accuracy, key=lambda key: (-accuracy[key], -key[1], key[0] == REINIT))
    best = accuracy[ranked[0]]
    by_chance = best - wilson(best, sweep.val_photos, z=1)[0] if sweep.val_photos else 0.0
    by_seed = float(np.std([outcome.val_accuracy for outcome in found[ranked[0]]]))
    least = best - max(by_chance, by_seed)
    return {key: accuracy[key] for key in ranked if accuracy[key] >= least - _ROUNDING}, least


def _freeze_advice(sweep: Sweep) -> str:
    (ties, least), chosen = _ties(sweep), best_freeze(sweep)
    best, most = next(iter(ties.items()))
    said = f"best on validation photos: {_options(best)} ({most:.1%})"
    if len(ties) == 1:
        return said
    rule = f"tie within one standard error ({least:.1%} or more of {sweep.val_photos} photos)"
    if chosen == best:
        return f"{said}; it has the most frozen stages of {len(ties)} settings that {rule}"
    return (
        f"{said}, but {len(ties)} settings {rule}; use {_options(chosen)} ({ties[chosen]:.1%}), which has the most "
        "frozen stages and trains fastest"
    )


def _options(key: tuple[str, int]) -> str:
    mode, at = key
    return f"--freeze {freeze_text(at)}" + (" --reinit" if mode == REINIT else "")


def _layer_advice(sweep: Sweep) -> str:
    """Return where accuracy is highest in each mode, whether it falls towards the last layer, and the layer to choose.

    The penultimate layer is chosen if it ties with the best, because the dense head reads it too. Of two networks that
    tie, the one as given is chosen, because it needs no training.
    """
    said = [_depth(sweep, mode) for mode in sweep.modes()]
    offered = {(mode, at) for mode in sweep.modes() for at in sweep.points(mode)
               if mode != RANDOM and LAYERS[at] in DESCRIPTORS}  # fmt: skip
    if offered:
        ties, _ = _ties(sweep, offered)
        mode, at = max(ties, key=lambda key: (LAYERS[key[1]] == PENULTIMATE, key[0] == AS_GIVEN, ties[key]))
        options = ["--freeze all"] if mode == AS_GIVEN else []
        options += [f"--descriptor {LAYERS[at]}"] if LAYERS[at] != PENULTIMATE else []
        layer = "the penultimate layer, the default," if LAYERS[at] == PENULTIMATE else LAYERS[at]
        given = f" ({' '.join(options)})" if options else ""
        tie = ", which ties with the best within one standard error" if len(ties) > 1 else ""
        said.append(f"use {layer} of the network {_NETWORKS[mode]}{given}{tie}")
    return "; ".join(said)


def _depth(sweep: Sweep, mode: str) -> str:
    """Return where the accuracy of a mode is highest on validation photos, and whether the last layer is below it."""
    accuracy = {at: mean(outcomes, "val_accuracy") for at, outcomes in sweep.points(mode).items()}
    best, last = max(accuracy, key=lambda at: (accuracy[at], -at)), max(accuracy)
    error = accuracy[best] - wilson(accuracy[best], sweep.val_photos, z=1)[0] if sweep.val_photos else 0.0
    said = f"{mode}: best on validation photos at {LAYERS[best]} ({accuracy[best]:.1%})"
    if accuracy[last] < accuracy[best] - error - _ROUNDING:
        return f"{said}, then it falls to {accuracy[last]:.1%} at {LAYERS[last]}"
    return said if best == last else f"{said}, {LAYERS[last]} ties ({accuracy[last]:.1%})"


def _label_advice(sweep: Sweep) -> str:
    """Return the gain of the last step in labels, and the expected gain of twice as many.

    Errors fall as a power of the number of labels (Hestness et al. 2017, "Deep learning scaling is predictable,
    empirically").
    """
    best = max(sweep.modes(), key=lambda mode: mean(list(sweep.points(mode).values())[-1], "val_accuracy"))
    if len(sweep.points(best)) < 2:
        return "too few photos per class to estimate the gain of more labels"
    (before, first), (now, last) = list(sweep.points(best).items())[-2:]
    low, high = mean(first, "test_accuracy"), mean(last, "test_accuracy")
    seen = f"{best}: from {before} to {now} photos per class, accuracy went from {low:.1%} to {high:.1%}"
    gain = _doubling(before, 1 - low, now, 1 - high)
    least, most = step(first, last, sweep.test_photos)
    # The largest gain that both intervals allow: the most errors at the last place, and the largest step to it.
    errors = 1 - interval(last, sweep.test_photos)[0]
    gain_at_most = _doubling(before, errors + most, now, errors)
    if gain_at_most >= _WORTH_LABELLING and (least <= 0 or gain < _WORTH_LABELLING):
        return (
            f"{seen}; by {sweep.test_photos} test photos, twice as many may gain 0 to {100 * gain_at_most:.1f} points, "
            "which does not show whether to label more; repeat the sweep with more test photos (--test or DATA/test)"
        )
    conclusion = "label more" if gain >= _WORTH_LABELLING else "more labels of the same kind will gain little"
    return f"{seen}; twice as many may gain {100 * gain:.1f} points: {conclusion}"


def _doubling(before: int, error_before: float, now: int, error_now: float) -> float:
    """Return by how much twice as many labels would lower the error, by the power law through two points."""
    if not 0 < error_now < error_before:
        return 0.0
    slope = math.log(error_now / error_before) / math.log(now / before)
    return error_now * (1 - 2**slope)
