"""What people found about answers: counts by outcome, confusion and live accuracy of each version.

The last verdict about an answer counts. Counters only rise, as Prometheus needs it, so a verdict that replaces another
one counts in `counts` as well, and the one that it replaces in `replaced`.
"""

import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from penult.bundle.scores import wilson

RIGHT, WRONG, UNKNOWN = OUTCOMES = ("right", "wrong", "unknown")
# The right class of a photo that belongs to none of the model's; no class has this name, for it is no file name.
NO_CLASS = "(none)"
# Live accuracy is that of so many answers; a verdict about an older one is new again after so many others.
RECENT, _REMEMBERED = 1000, 50_000
# The versions with feedback that are counted, and the right classes of each that a confusion has rows for.
_VERSIONS, MAX_LABELS = 20, 31
OTHERS = "(other)"


@dataclass(frozen=True)
class Truth:
    """One answer, and what a person found about it.

    Attributes:
        request_id: With `index`, names the answer; "" if only `image_id` does.
        index: The place in the response, from 0.
        image_id: The client's name of the image, or "".
        model: The model that answered.
        version: Its version.
        answered: The class that it named.
        probability: Its calibrated probability; 0 if unknown.
        outcome: One of OUTCOMES.
        label: The right class, NO_CLASS, or "" if it is not known.
        caller: Who sent the feedback: the name of a token, or an address.
        time: When, in seconds since 1970.
        photo: The photo that is kept, as a path below the folder; "" for none.
    """

    request_id: str
    index: int
    image_id: str
    model: str
    version: int
    answered: str
    probability: float
    outcome: str
    label: str
    caller: str = ""
    time: float = 0.0
    photo: str = ""

    @property
    def says(self) -> tuple[str, int, str, str, str]:
        """What was answered and found: two verdicts of one answer that say the same count once."""
        return self.model, self.version, self.answered, self.outcome, self.label

    @property
    def keys(self) -> list[str]:
        """What the answer is found by, the surest first."""
        named = [f"{self.request_id}/{self.index}"] if self.request_id else []
        return [*named, f"={self.image_id}"] if self.image_id else named

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without what is empty."""
        return {name: value for name, value in asdict(self).items() if value not in ("", 0.0) or name in _NEEDED}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Truth":
        """Return a truth from the values of to_dict(), ignoring others; raise ValueError if they cannot be right."""
        given = {name: values[name] for name in _TYPES if name in values}
        is_right = all(isinstance(value, _TYPES[name]) for name, value in given.items())
        if not is_right or given.get("outcome") not in OUTCOMES:
            raise ValueError("no record of feedback")
        defaults: dict[str, Any] = {"request_id": "", "index": 0, "image_id": "", "probability": 0.0, "label": ""}
        return cls(**defaults | given)


_NEEDED = ("index", "model", "version", "answered", "outcome")
_TYPES: dict[str, Any] = {
    field.name: {"int": int, "float": (int, float)}.get(str(getattr(field.type, "__name__", field.type)), str)
    for field in fields(Truth)
}


@dataclass(frozen=True)
class LiveAccuracy:
    """The share of right answers among the latest with a verdict, and its 95 % interval (Wilson)."""

    accuracy: float
    low: float
    high: float
    answers: int


@dataclass(frozen=True)
class Summary:
    """The counts of one version; `confusion` is by answered class and right class, without zeros."""

    model: str
    version: int
    counts: Mapping[str, int]
    replaced: Mapping[str, int]
    confusion: Mapping[tuple[str, str], int]
    live: LiveAccuracy | None

    def mistakes(self, most: int) -> list[tuple[str, str, int]]:
        """Return the most frequent mistakes: answered class, right class, number of answers."""
        wrong = [(answered, label, count) for (answered, label), count in self.confusion.items() if answered != label]
        return sorted(wrong, key=lambda mistake: (-mistake[2], mistake))[:most]


class VersionTruths:
    """What is known of one version's answers."""

    def __init__(self) -> None:
        """Start without any."""
        self.counts: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self.replaced: Counter[str] = Counter()
        # By answered class and right class, of the last verdicts.
        self.confusion: Counter[tuple[str, str]] = Counter()
        self._labels: set[str] = set()
        self._recent: OrderedDict[str, bool] = OrderedDict()

    def add(self, truth: Truth, before: Truth | None) -> None:
        """Count a verdict, which replaces another one of the same version unless that is None."""
        self.counts[truth.outcome] += 1
        self._confuse(truth, 1)
        if before:
            self.replaced[before.outcome] += 1
            self._confuse(before, -1)
            self._recent.pop(before.keys[0], None)
        if truth.outcome != UNKNOWN:
            self._recent[truth.keys[0]] = truth.outcome == RIGHT
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)

    def summary(self, model: str, version: int) -> Summary:
        """Return the counts so far."""
        confusion = {pair: count for pair, count in self.confusion.items() if count}
        return Summary(model, version, dict(self.counts), dict(self.replaced), confusion, self._live())

    def _live(self) -> LiveAccuracy | None:
        answers = len(self._recent)
        if not answers:
            return None
        accuracy = sum(self._recent.values()) / answers
        return LiveAccuracy(accuracy, *wilson(accuracy, answers), answers)

    def _confuse(self, truth: Truth, count: int) -> None:
        if truth.label:
            self.confusion[self._series(truth.answered), self._series(truth.label)] += count

    def _series(self, label: str) -> str:
        """Return a class, or OTHERS for those that come after the first MAX_LABELS classes in the order of truths."""
        if label != NO_CLASS and label not in self._labels:
            if len(self._labels) >= MAX_LABELS:
                return OTHERS
            self._labels.add(label)
        return label


class Truths:
    """The verdicts of all versions, from any thread. Truths in the same order always give the same counts."""

    def __init__(self) -> None:
        """Start without any."""
        self._versions: OrderedDict[tuple[str, int], VersionTruths] = OrderedDict()
        self._known: OrderedDict[str, Truth] = OrderedDict()
        self._lock = threading.RLock()

    def known(self, truth: Truth) -> Truth | None:
        """Return the last verdict about the same answer."""
        with self._lock:
            return next((found for key in truth.keys[:1] if (found := self._known.get(key))), None)

    def add(self, truth: Truth) -> None:
        """Count a verdict."""
        with self._lock:
            before = self.known(truth)
            which = truth.model, truth.version
            is_same = before is not None and (before.model, before.version) == which
            self._versions.setdefault(which, VersionTruths()).add(truth, before if is_same else None)
            self._versions.move_to_end(which)
            if len(self._versions) > _VERSIONS:
                self._versions.popitem(last=False)
            for key in truth.keys:
                self._known[key] = truth
                self._known.move_to_end(key)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)

    def summaries(self) -> list["Summary"]:
        """Return the counts of each version with feedback, the one of the latest last."""
        with self._lock:
            return [found.summary(*which) for which, found in self._versions.items()]

    def clear(self) -> None:
        """Forget all, before they are read again."""
        with self._lock:
            self._versions.clear()
            self._known.clear()
