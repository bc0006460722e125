"""What pages are sent: the state, and the photos to label, as JSON values."""

from collections.abc import Mapping, Sequence, Set
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.label.knowledge import GAIN_LABELS, Knowledge
from penult.label.labels_file import LabelsFile
from penult.label.pool import Pool
from penult.label.shown_images import image_url, thumbnail_url
from penult.label.strategies import CHECK, Pick, suspects

# A label that a person has confirmed is recorded as one that was checked.
CONFIRMED = CHECK
_TOP, _NEIGHBOURS, _SUSPECTS = 5, 3, 6
_CURVE_POINTS = 100
# Keys of classes, in their order. The other letters are commands of the page.
COMMAND_KEYS = "sng"
_KEYS = [*"123456789", *(letter for letter in "abcdefghijklmnopqrstuvwxyz" if letter not in COMMAND_KEYS)]


def item(
    pool: Pool, knowledge: Knowledge, classes: Sequence[str], pick: Pick, label: str | None, with_neighbours: bool
) -> dict[str, Any]:
    """Return a photo to label; `label` is the one that it has."""
    top = _top(knowledge, classes, pick.row)
    return _image(pool, pick.row) | {
        "label": label,
        "guess": top[0][0] if top else None,
        "probability": top[0][1] if top else None,
        "probabilities": [list(each) for each in top],
        "kind": pick.kind,
        "reason": pick.reason,
        "neighbours": neighbours(pool, knowledge, pick.row, _NEIGHBOURS, classes) if with_neighbours else [],
    }


def neighbours(pool: Pool, knowledge: Knowledge, row: int, count: int, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the labelled photos nearest to one, the nearest first, with their cosine."""
    if knowledge.fit is None or knowledge.known is None:
        return []
    cosines = knowledge.known @ pool.inputs[row]
    cosines[knowledge.fit.rows == row] = -2
    nearest = np.argsort(-cosines, kind="stable")[:count]
    return [
        _image(pool, int(knowledge.fit.rows[place]))
        | {"label": classes[knowledge.fit.labels[place]], "similarity": round(float(cosines[place]), 3)}
        for place in nearest.tolist()
        if cosines[place] > -2
    ]


def surest(knowledge: Knowledge, label: int, rows: NDArray[np.intp], count: int) -> list[int]:
    """Return the photos among `rows` whose guess is `label`, the most probable first."""
    if knowledge.fit is None or label >= knowledge.fit.probabilities.shape[1]:
        return []
    probabilities = knowledge.fit.probabilities[rows]
    guessed = rows[probabilities.argmax(axis=1) == label]
    order = np.argsort(-knowledge.fit.probabilities[guessed, label], kind="stable")
    return [int(row) for row in guessed[order[:count]]]


def guesses(pool: Pool, knowledge: Knowledge, classes: Sequence[str]) -> dict[str, tuple[str, float]]:
    """Return the most probable class of each photo with its probability; nothing before the first fit."""
    if knowledge.fit is None:
        return {}
    top = knowledge.fit.probabilities.argmax(axis=1)
    sure = knowledge.fit.probabilities.max(axis=1)
    return {
        id_: (classes[place], float(value))
        for id_, place, value in zip(pool.ids, top.tolist(), sure.tolist(), strict=True)
    }


def state(
    revision: int,
    pool: Pool,
    file: LabelsFile,
    classes: Sequence[str],
    labels: Mapping[int, int],
    confirmed: Set[int],
    knowledge: Knowledge,
    is_behind: bool,
) -> dict[str, Any]:
    """Return what every page shows."""
    counts = np.bincount([*labels.values()], minlength=len(classes)).tolist() if classes else []
    keys = [*_KEYS, *[""] * len(classes)]
    curve = [_point(each) for each in knowledge.curve]
    step = -(-len(curve) // _CURVE_POINTS) or 1
    points, low, high = (round(100 * each, 2) for each in knowledge.gain or (0.0, 0.0, 0.0))
    return {
        "revision": revision,
        "folder": str(pool.root),
        "labels_file": str(file.path),
        "network": pool.network,
        "photos": len(pool.ids),
        "labelled": len(labels),
        "skipped": sum(1 for id_ in file.skipped if id_ not in file.labels),
        "classes": [
            {"name": name, "key": key, "count": count} for name, key, count in zip(classes, keys, counts, strict=False)
        ],
        "is_fitting": is_behind,
        "fitted_labels": len(knowledge.fit.rows) if knowledge.fit else 0,
        "accuracy": dict(zip(("labels", "value", "low", "high"), curve[-1], strict=True)) if curve else None,
        "curve": [*curve[:-1:step], *curve[-1:]],
        "gain": {"labels": GAIN_LABELS, "points": points, "low": low, "high": high} if knowledge.gain else None,
        "may_stop": knowledge.may_stop,
        "advice": _advice(len(labels), len(pool.ids), counts, knowledge),
        "suspects": _suspects(pool, classes, labels, confirmed, knowledge),
    }


def _advice(labelled: int, photos: int, counts: Sequence[int], knowledge: Knowledge) -> str:
    """Return what to do next, in one sentence."""
    if labelled == photos:
        return "All photos are labelled."
    if sum(count > 0 for count in counts) < 2:
        return "Label photos of two classes, and the classifier begins to learn."
    if knowledge.may_stop:
        return "You may stop: more labels have hardly changed the accuracy lately."
    if knowledge.gain:
        points, low, high = (100 * each for each in knowledge.gain)
        return f"The next {GAIN_LABELS} labels may bring {points:.1f} points of accuracy ({low:.1f} to {high:.1f})."
    return "Go on: there are too few labels to judge the accuracy."


def _suspects(
    pool: Pool, classes: Sequence[str], labels: Mapping[int, int], confirmed: Set[int], knowledge: Knowledge
) -> list[dict[str, Any]]:
    """Return labels to look at again, the least probable first."""
    if knowledge.fit is None:
        return []
    return [
        _image(pool, each.row)
        | {
            "label": classes[each.label],
            "suggested": classes[each.likely],
            "probability": round(each.probability, 3),
        }
        for each in islice(suspects(knowledge.fit, labels, confirmed), _SUSPECTS)
    ]


def _image(pool: Pool, row: int) -> dict[str, Any]:
    photo = pool.photos[row]
    return {"id": pool.ids[row], "image_url": image_url(photo), "thumbnail_url": thumbnail_url(photo)}


def _top(knowledge: Knowledge, classes: Sequence[str], row: int) -> list[tuple[str, float]]:
    """Return the most probable classes of a photo."""
    if knowledge.fit is None:
        return []
    probabilities = knowledge.fit.probabilities[row]
    order = np.argsort(-probabilities, kind="stable")[:_TOP].tolist()
    return [(classes[place], round(float(probabilities[place]), 4)) for place in order if probabilities[place] > 0]


def _point(each: Any) -> list[float]:
    return [each.labels, *(round(float(value), 4) for value in (each.accuracy, each.low, each.high))]
