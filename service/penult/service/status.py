"""What a server is doing, for people: from its own metrics, sampled into a ring; the page needs no Prometheus."""

import asyncio
import importlib.metadata
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from penult.service.metrics import Exposition, Sample

EVERY_S = 5.0
# Ten minutes.
_SAMPLES = 120
# Rates and percentiles are of the last minute.
_RECENT = 12
_MOST_EVENTS = 20

# What is kept of every sample; a thousand classes would make the ring too large, so of answers a sample a minute is.
_LOAD = (
    "penult_requests", "penult_request_seconds", "penult_phase_seconds", "penult_images", "penult_queue_depth",
    "penult_dropped",
)  # fmt: skip
_ANSWERS = ("penult_answers", "penult_novel", "penult_novelty_ratio", "penult_confidence")
_ANSWERS_EVERY_S, _ANSWERS_KEPT = 60.0, 11
_NOW = (
    "penult_model_info", "penult_baseline_class_share", "penult_baseline_novel_share", "penult_baseline_confidence",
    "penult_lookup_collections", "penult_lookup_items",
)  # fmt: skip


@dataclass(frozen=True)
class Event:
    """Something that happened to a version: loaded, refused (and why), retired; `time` in seconds since 1970."""

    time: float
    outcome: str
    model: str
    version: int
    reason: str = ""


class Events:
    """The last that happened to versions, newest first."""

    def __init__(self) -> None:
        """Begin with none."""
        self._events: deque[Event] = deque(maxlen=_MOST_EVENTS)

    def add(self, outcome: str, model: str, version: int, reason: str = "") -> None:
        """Note one."""
        self._events.appendleft(Event(time.time(), outcome, model, version, reason))

    def told(self) -> list[dict[str, Any]]:
        """Return them as plain values."""
        return [asdict(event) for event in self._events]


class Status:
    """Samples an exposition and says what it means."""

    def __init__(self, metrics: Exposition, state: Callable[[], str], events: Events | None = None) -> None:
        """Sample nothing yet; `state` returns ready, loading or draining."""
        self._metrics, self._state, self._events = metrics, state, events or Events()
        self._started = time.time()
        self._ring: deque[_Taken] = deque(maxlen=_SAMPLES)
        self._answers: deque[_Taken] = deque(maxlen=_ANSWERS_KEPT)

    async def run(self) -> None:
        """Sample for ever."""
        while True:
            self.sample()
            await asyncio.sleep(EVERY_S)

    def sample(self) -> None:
        """Take a sample."""
        self._ring.append(self._take(_LOAD))
        if not self._answers or time.time() - self._answers[-1].time >= _ANSWERS_EVERY_S:
            self._answers.append(self._take(_ANSWERS))

    def _take(self, families: Sequence[str]) -> "_Taken":
        return _Taken(time.time(), _values(self._metrics.samples(families)))

    def told(self) -> dict[str, Any]:
        """Return everything that the page shows, as plain values; rates are per second."""
        now = self._take((*_LOAD, *_ANSWERS, *_NOW))
        recent = _Between(self._ring[-min(len(self._ring), _RECENT)] if self._ring else now, now)
        lately = _Between(self._answers[0] if self._answers else now, now)
        return {
            "penult": importlib.metadata.version("penult"),
            "state": self._state(),
            "uptime_s": round(now.time - self._started),
            "models": [_model(labels, lately) for labels in _served(now)],
            "load": _load(recent),
            "history": _history([*self._ring]),
            "events": self._events.told(),
            "lookup": {name: now.sum(f"penult_lookup_{name}") for name in ("collections", "items")},
        }


@dataclass(frozen=True)
class _Taken:
    """All values at one time."""

    time: float
    values: Mapping[str, Mapping[tuple[tuple[str, str], ...], float]]

    def of(self, name: str, **labels: str) -> dict[tuple[tuple[str, str], ...], float]:
        wanted = set(labels.items())
        return {key: value for key, value in self.values.get(name, {}).items() if wanted <= set(key)}

    def sum(self, name: str, **labels: str) -> float:
        return sum(self.of(name, **labels).values())


@dataclass(frozen=True)
class _Between:
    """What was gained between two samples."""

    before: _Taken
    after: _Taken

    def gained(self, name: str, **labels: str) -> float:
        return max(0.0, self.after.sum(name, **labels) - self.before.sum(name, **labels))

    def rate(self, name: str, **labels: str) -> float:
        seconds = self.after.time - self.before.time
        return self.gained(name, **labels) / seconds if seconds > 0.5 else 0.0

    def share(self, name: str, of: str, **labels: str) -> float | None:
        whole = self.gained(of, **labels)
        return self.gained(name, **labels) / whole if whole else None

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Return what was gained by the values of a label, without those that gained nothing."""
        values = {dict(key)[label] for key in self.after.of(name, **labels)}
        gained = {value: self.gained(name, **labels, **{label: value}) for value in sorted(values)}
        return {value: count for value, count in gained.items() if count}

    def quantile_ms(self, name: str, share: float, **labels: str) -> float | None:
        """Return a quantile of a histogram of seconds, interpolated within its bucket as Prometheus does."""
        bounds = {dict(key)["le"] for key in self.after.of(f"{name}_bucket", **labels)}
        counts = sorted((float(b), self.gained(f"{name}_bucket", **labels, le=b)) for b in bounds)
        if not counts or not counts[-1][1]:
            return None
        wanted, low, below = share * counts[-1][1], 0.0, 0.0
        for bound, count in counts:
            if count >= wanted:
                width = 0.0 if math.isinf(bound) else bound - low
                return 1000 * (low + width * (wanted - below) / max(count - below, 1e-9))
            low, below = bound, count
        return 1000 * low


def _values(samples: Iterable[Sample]) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for name, labels, value in samples:
        found.setdefault(name, {})[tuple(sorted(labels.items()))] = value
    return found


def _served(now: _Taken) -> list[dict[str, str]]:
    served = [dict(key) for key, value in now.of("penult_model_info").items() if value]
    return sorted(served, key=lambda labels: (labels["model"], int(labels["version"])))


def _load(recent: _Between) -> dict[str, Any]:
    codes = recent.by("penult_requests_total", "code")
    seconds = max(recent.after.time - recent.before.time, 0.5)
    phases = {}
    for phase, count in recent.by("penult_phase_seconds_count", "phase").items():
        phases[phase] = 1000 * recent.gained("penult_phase_seconds_sum", phase=phase) / count
    return {
        "requests_per_s": recent.rate("penult_requests_total"),
        "images_per_s": recent.rate("penult_images_total"),
        "queue_depth": recent.after.sum("penult_queue_depth"),
        "errors_per_s": {code: count / seconds for code, count in codes.items() if code != "OK"},
        "dropped_per_s": {r: n / seconds for r, n in recent.by("penult_dropped_total", "reason").items()},
        "p50_ms": recent.quantile_ms("penult_request_seconds", 0.5),
        "p99_ms": recent.quantile_ms("penult_request_seconds", 0.99),
        "phases_ms": phases,
    }


def _model(labels: dict[str, str], lately: _Between) -> dict[str, Any]:
    which = {"model": labels["model"], "version": labels["version"]}
    answers = lately.by("penult_answers_total", "label", **which)
    whole = sum(answers.values())
    baseline = {
        dict(key)["label"]: value for key, value in lately.after.of("penult_baseline_class_share", **which).items()
    }
    classes = sorted({dict(key)["label"] for key in lately.after.of("penult_answers_total", **which)})
    confidence = {
        scorer: {"mean": lately.share("penult_confidence_sum", "penult_confidence_count", **which, scorer=scorer),
                 "baseline": lately.after.sum("penult_baseline_confidence", **which, scorer=scorer) or None}
        for scorer in lately.by("penult_confidence_count", "scorer", **which)
    }  # fmt: skip
    return {
        **labels,
        "answers": whole,
        "classes": [
            {"label": name, "share": answers.get(name, 0) / whole if whole else None, "baseline": baseline.get(name)}
            for name in classes
        ],
        "confidence": confidence,
        "novel_share": lately.share("penult_novel_total", "penult_novelty_ratio_count", **which),
        "novel_baseline": lately.after.sum("penult_baseline_novel_share", **which) if baseline else None,
    }


def _history(ring: Sequence[_Taken]) -> dict[str, Any]:
    pairs = [_Between(before, after) for before, after in pairwise(ring)]
    return {
        "every_s": EVERY_S,
        "requests_per_s": [pair.rate("penult_requests_total") for pair in pairs],
        "p99_ms": [pair.quantile_ms("penult_request_seconds", 0.99) for pair in pairs],
        "queue_depth": [pair.after.sum("penult_queue_depth") for pair in pairs],
    }
