"""How often a model's latest answers are right, estimated without labels: from their calibrated probabilities.

The estimate is the mean probability of the latest answers. Temperature scaling makes that the accuracy on validation
photos (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017). It follows the photos as long as they are of
the same kind (Guillory et al., "Predicting with Confidence on Unseen Distributions", ICCV 2021). If novelty or class
mix show that they are not, the estimate is marked unreliable.
"""

import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from penult.bundle.baseline import Baseline
from penult.bundle.scores import wilson
from penult.service.observability.significance import MORE, UNKNOWN_PHOTOS, trend

# The answers that an estimate is made of, and the latest of them, which show a sudden change sooner.
MAX_ANSWERS, RECENT = 1000, 200
# With fewer, an estimate is not reliable.
MIN_ANSWERS = 50
# A change is held against an estimate if chance does not explain it, and if it could move the accuracy by points: a
# share of novel photos so much above the usual one, or so much total variation distance between the class mixes.
_NOVEL, _CLASS_MIX = 0.05, 0.15


@dataclass
class Counts:
    """Counts of some answers; those of several processes add up."""

    answers: int = 0
    probability: float = 0.0
    labels: dict[str, int] = field(default_factory=dict)
    # The photos whose novelty is known, and how many are above the model's threshold.
    judged: int = 0
    novel: int = 0

    def add(self, more: "Counts") -> None:
        """Add other counts to these."""
        self.answers += more.answers
        self.probability += more.probability
        self.labels = dict(Counter(self.labels) + Counter(more.labels))
        self.judged += more.judged
        self.novel += more.novel


@dataclass(frozen=True)
class Reference:
    """What a model's answers were like on its validation photos.

    `photos` and `novel_photos` are 0 if the bundle does not say of how many photos the shares are.
    """

    classes: int
    photos: int = 0
    shares: Mapping[str, float] = field(default_factory=dict)
    novel_share: float = 0.0
    novel_photos: int = 0

    @classmethod
    def of(cls, classes: Sequence[str], baseline: Baseline | None) -> "Reference":
        """Return the reference of a model; without a baseline it has no shares."""
        if baseline is None:
            return cls(len(classes))
        shares = dict(zip(classes, baseline.class_share.tolist(), strict=True))
        return cls(len(classes), baseline.photos, shares, baseline.limit.share, baseline.limit.photos)


@dataclass(frozen=True)
class Estimate:
    """A model's accuracy on its latest answers, its 95 % interval, and why it is not reliable (empty if it is)."""

    model: str
    version: str
    accuracy: float
    low: float
    high: float
    answers: int
    reasons: tuple[str, ...]


@dataclass
class WindowState:
    """One model's window, as one process has it."""

    model: str
    version: str
    reference: Reference
    latest: Counts
    recent: Counts

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "WindowState":
        """Return a state from the values of to_dict(); raise TypeError or KeyError if they are others."""
        return cls(
            values["model"], values["version"], Reference(**values["reference"]), Counts(**values["latest"]),
            Counts(**values["recent"]),
        )  # fmt: skip

    def estimate(self) -> Estimate | None:
        """Return the estimate; None without answers."""
        counts, reference = self.latest, self.reference
        if not counts.answers:
            return None
        photos = reference.photos or UNKNOWN_PHOTOS
        accuracy = unsmoothed(counts.probability / counts.answers, photos, reference.classes)
        # The calibration is known as well as an accuracy on the validation photos, the window as one on its own
        # photos. Both errors together are those of so many photos. The variance of a sum of trials of different
        # chances is never above that of trials of their mean chance.
        low, high = wilson(accuracy, 1 / (1 / photos + 1 / counts.answers))
        return Estimate(self.model, self.version, accuracy, low, high, counts.answers, tuple(self._reasons()))

    def _reasons(self) -> Iterable[str]:
        if self.latest.answers < MIN_ANSWERS:
            yield f"fewer than {MIN_ANSWERS} answers yet"
        if not self.reference.shares:
            yield "the bundle has no baseline to detect drift with"
            return
        novel = [reason for counts in (self.recent, self.latest) if (reason := self._novelty(counts))]
        mixes = [reason for counts in (self.recent, self.latest) if (reason := self._class_mix(counts))]
        yield from (*novel[:1], *mixes[:1])

    def _novelty(self, counts: Counts) -> str:
        usual, share = self.reference.novel_share, counts.novel / max(counts.judged, 1)
        is_more = trend(share, counts.judged, usual, self.reference.novel_photos, 2) == MORE
        if not is_more or share - usual <= _NOVEL:
            return ""
        return f"{share:.0%} of the last {counts.judged} photos are unlike the training photos, usually {usual:.0%}"

    def _class_mix(self, counts: Counts) -> str:
        shares, photos = self.reference.shares, self.reference.photos
        now = {label: counts.labels.get(label, 0) / max(counts.answers, 1) for label in shares}
        distance = 0.5 * sum(abs(now[label] - usual) for label, usual in shares.items())
        if distance <= _CLASS_MIX:
            return ""
        rows = 2 * len(shares)
        changed = [name for name, usual in shares.items() if trend(now[name], counts.answers, usual, photos, rows)]
        if not changed:
            return ""
        most = max(changed, key=lambda label: abs(now[label] - shares[label]))
        return f"{now[most]:.0%} of the last {counts.answers} answers are {most}, {shares[most]:.0%} in validation"


def unsmoothed(confidence: float, photos: int, classes: int) -> float:
    """Return the accuracy that a mean probability stands for.

    Temperatures are fitted to targets that are not quite 1 (Platt 1999). With n photos, the true class counts as
    (n + 1) / (n + 2). So the mean probability on validation photos is below their accuracy by that much.
    """
    doubt = 1 / (photos + 2)
    other = doubt / max(classes - 1, 1)
    return min(max((confidence - other) / (1 - doubt - other), 0.0), 1.0)


class AnswerWindow:
    """The latest answers of one version of a model by one scorer, from any thread."""

    def __init__(self, reference: Reference) -> None:
        """Start empty."""
        self._reference = reference
        self._answers: deque[tuple[str, float]] = deque(maxlen=MAX_ANSWERS)
        self._novel: deque[bool] = deque(maxlen=MAX_ANSWERS)
        self._lock = threading.Lock()

    def add_answers(self, best: Iterable[tuple[str, float]]) -> None:
        """Add the best class of each image, and its calibrated probability."""
        with self._lock:
            self._answers.extend(best)

    def add_novelty(self, above: Iterable[bool]) -> None:
        """Add whether each image is above the model's novelty threshold."""
        with self._lock:
            self._novel.extend(above)

    def state(self, model: str, version: str) -> WindowState:
        """Return what the window holds, of a model's version."""
        with self._lock:
            answers, novel = list(self._answers), list(self._novel)
        return WindowState(
            model, version, self._reference, _counted(answers, novel), _counted(answers[-RECENT:], novel[-RECENT:])
        )


def _counted(answers: Sequence[tuple[str, float]], novel: Sequence[bool]) -> Counts:
    labels = Counter(label for label, _ in answers)
    return Counts(len(answers), sum(probability for _, probability in answers), dict(labels), len(novel), sum(novel))


class Windows:
    """The windows of all versions that one process serves, from any thread."""

    def __init__(self) -> None:
        """Start without any."""
        self._windows: dict[tuple[str, str], AnswerWindow] = {}

    def open(self, model: tuple[str, str], reference: Reference) -> AnswerWindow:
        """Return a new window for a version; `model` is name and version."""
        window = self._windows[model] = AnswerWindow(reference)
        return window

    def forget(self, model: tuple[str, str]) -> None:
        """Remove a version's window."""
        self._windows.pop(model, None)

    def states(self) -> list[WindowState]:
        """Return what each window holds."""
        return [window.state(*model) for model, window in list(self._windows.items())]


def merged(states: Iterable[WindowState]) -> list[WindowState]:
    """Return one state for each version, of all processes together."""
    found: dict[tuple[str, str], WindowState] = {}
    for state in states:
        known = found.setdefault((state.model, state.version), state)
        if known is not state:
            known.latest.add(state.latest)
            known.recent.add(state.recent)
    return list(found.values())
