"""What a shadow's answers are like beside those of the version that clients get: agreement, confidence, time, feedback.

Plain counts of this process, from any thread; inference/shadow.py adds to them.
"""

import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from penult.bundle.scores import wilson
from penult.service.observability.sequential import LIMIT, evidence_of_worse
from penult.service.observability.truths import RIGHT, UNKNOWN, Truth

# What feedback says of an answer and the shadow's. UNCLEAR: the answer was wrong, the shadow's is another one, and the
# right class is not known.
BOTH, ONLY_PRIMARY, ONLY_SHADOW, NEITHER, UNCLEAR = FOUND = (
    "both_right", "only_primary_right", "only_shadow_right", "both_wrong", "unclear",
)  # fmt: skip
_PAIRS = 20


@dataclass(frozen=True)
class Rate:
    """A share of `answers`, with its 95 % interval (Wilson)."""

    share: float
    low: float
    high: float
    answers: int

    @classmethod
    def of(cls, count: int, answers: int) -> "Rate | None":
        """Return a share; None of no answers."""
        return cls(count / answers, *wilson(count / answers, answers), answers) if answers else None


@dataclass(frozen=True)
class Compared:
    """One shadow beside one version, as it is now.

    Pairs are of the primary and the shadow, and None if nothing is known.

    Attributes:
        model: The name of both versions.
        version: The shadow.
        primary: The version that clients got.
        agreement: How often both name the same class.
        confidence: The mean probabilities of the best classes.
        seconds: The mean times to decode, run and score one image, of requests with one.
        found: Answers with feedback, by what it says.
        accuracy: The shares of right answers among those with feedback.
        is_worse: Whether the shadow is worse by more than chance explains.
    """

    model: str
    version: int
    primary: int
    agreement: Rate | None
    confidence: tuple[float, float] | None
    seconds: tuple[float, float] | None
    found: Mapping[str, int]
    accuracy: tuple[Rate, Rate] | None
    is_worse: bool


class Comparison:
    """The counts of one shadow beside one version, from any thread."""

    def __init__(self, model: str, version: int, primary: int) -> None:
        """Start without any; `version` is the shadow's, `primary` that of the version that clients get."""
        self.model, self.version, self.primary = model, version, primary
        self.is_worse = False
        self._images = self._agreed = self._timed = 0
        self._confidence, self._seconds = [0.0, 0.0], [0.0, 0.0]
        self._found = Counter(dict.fromkeys(FOUND, 0))
        self._lock = threading.Lock()

    def add(self, agrees: bool, confidence: tuple[float, float], seconds: tuple[float, float]) -> None:
        """Count one image; the pairs are of primary and shadow, and a time of 0 is not known."""
        with self._lock:
            self._images += 1
            self._agreed += agrees
            is_timed = seconds[0] > 0
            self._timed += is_timed
            for place in (0, 1):
                self._confidence[place] += confidence[place]
                self._seconds[place] += seconds[place] * is_timed

    def judge(self, found: str, before: str = "") -> bool:
        """Count what feedback says of one image, in place of `before`.

        Return True at the first sign that the shadow is worse.

        An unclear answer counts for the shadow. It may be right, and then the shadow is not worse.
        """
        with self._lock:
            self._found[found] += bool(found)
            self._found[before] -= bool(before)
            counts = self._found
            evidence = evidence_of_worse(counts[ONLY_PRIMARY], counts[ONLY_SHADOW] + counts[UNCLEAR])
            is_new = evidence >= LIMIT and not self.is_worse
            # It stays: the error of the test is that of ever saying so.
            self.is_worse |= is_new
        return is_new

    def now(self) -> Compared:
        """Return the counts so far."""
        with self._lock:
            images, timed, found = self._images, self._timed, {name: self._found[name] for name in FOUND}
            judged = sum(found.values())
            primary = Rate.of(found[BOTH] + found[ONLY_PRIMARY], judged)
            shadow = Rate.of(judged - found[ONLY_PRIMARY] - found[NEITHER], judged)
            return Compared(
                self.model, self.version, self.primary, Rate.of(self._agreed, images),
                (self._confidence[0] / images, self._confidence[1] / images) if images else None,
                (self._seconds[0] / timed, self._seconds[1] / timed) if timed else None,
                found, (primary, shadow) if primary and shadow else None, self.is_worse,
            )  # fmt: skip


def what_it_says(truth: Truth, shadow: str) -> str:
    """Return which of FOUND a verdict says of its answer and of a shadow's answer; "" if it says nothing."""
    if truth.outcome == UNKNOWN:
        return ""
    is_right = truth.outcome == RIGHT
    if shadow == truth.answered:
        return BOTH if is_right else NEITHER
    if is_right:
        return ONLY_PRIMARY
    if not truth.label:
        return UNCLEAR
    return ONLY_SHADOW if shadow == truth.label else NEITHER


class Comparisons:
    """The comparisons of one process, from any thread."""

    def __init__(self) -> None:
        """Start without any."""
        self._pairs: OrderedDict[tuple[str, int, int], Comparison] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, model: str, version: int, primary: int) -> Comparison:
        """Return the comparison of a shadow with the version that clients get."""
        with self._lock:
            found = self._pairs.setdefault((model, version, primary), Comparison(model, version, primary))
            if len(self._pairs) > _PAIRS:
                self._pairs.popitem(last=False)
            return found

    def forget(self, model: str, version: int) -> None:
        """Remove the comparisons of a shadow."""
        with self._lock:
            for key in [key for key in self._pairs if key[:2] == (model, version)]:
                del self._pairs[key]

    def now(self) -> list[Compared]:
        """Return all, by model, shadow and version."""
        with self._lock:
            return [self._pairs[key].now() for key in sorted(self._pairs)]
