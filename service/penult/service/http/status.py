"""Data of the status page: the server samples its own metrics into rings, so the page needs no Prometheus.

Sampling and requests share one event loop. So each sample reads the metrics once, however many classes models have, and
the points of the curves are computed when a sample is taken.
"""

import asyncio
import importlib.metadata
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from penult.service.http.accuracy import accuracies
from penult.service.http.reports import has_report
from penult.service.http.shadows import shadows
from penult.service.inference.collections import Collections, Listed
from penult.service.lifecycle.events import Events
from penult.service.models.registry import READY, ModelRegistry
from penult.service.observability.metric_window import MetricDelta, MetricSnapshot, TimedSnapshot, steady_time, take
from penult.service.observability.metrics import Exposition
from penult.service.observability.significance import trend

log = logging.getLogger(__name__)

EVERY_S = 5.0
# The curves show ten minutes.
_POINTS = 120
# Rates and percentiles are of the last minute.
_RECENT = 12
# Statistics of answers cover the last ten minutes, give or take one.
_MINUTES = 10
# Classes per model in /status.json, those that answers name most often: every poll of the page transfers them.
_MAX_CLASSES = 100

# Metrics sampled every five seconds; those with a value per class, every minute; and those read only on request.
_LOAD = (
    "penult_requests", "penult_request_seconds", "penult_phase_seconds", "penult_images", "penult_queue_depth",
    "penult_dropped",
)  # fmt: skip
_ANSWERS = ("penult_answers", "penult_novel", "penult_novelty_ratio", "penult_confidence")
_NOW = (
    "penult_model_info", "penult_baseline_class_share", "penult_baseline_novel_share", "penult_baseline_confidence",
    "penult_baseline_photos",
    "penult_lookup_collections", "penult_lookup_items", "penult_fronts_ready", "penult_front_deaths",
    "penult_shadow_images",
)  # fmt: skip


class Status:
    """Samples an exposition and returns what the status page shows."""

    def __init__(
        self,
        metrics: Exposition,
        state: Callable[[], str],
        events: Events | None = None,
        repository: ModelRegistry | None = None,
        collections: Collections | None = None,
    ) -> None:
        """Sample nothing yet; `state` returns ready, loading, failing or draining.

        A supervisor passes only the metrics of its workers and its state.
        """
        self._metrics, self._state, self._events = metrics, state, events
        self._repository, self._collections = repository, collections
        self._started = steady_time()
        self._recent: deque[TimedSnapshot] = deque(maxlen=_RECENT + 1)
        self._minutes: deque[TimedSnapshot] = deque(maxlen=_MINUTES + 1)
        self._points: deque[_Point] = deque(maxlen=_POINTS)
        self._count = 0

    async def run(self) -> None:
        """Sample every five seconds until cancelled."""
        while True:
            try:
                self.sample()
            except Exception:  # one failed sample must not stop the page for good
                log.exception("metrics cannot be sampled for the status page")
            await asyncio.sleep(EVERY_S)

    def sample(self) -> None:
        """Take a sample."""
        taken = self._take(_LOAD)
        if self._recent:
            self._points.append(_point(self._recent[-1], taken))
        self._recent.append(taken)
        if self._count % _RECENT == 0:
            self._minutes.append(self._take(_ANSWERS))
        self._count += 1

    def as_json(self) -> dict[str, Any]:
        """Return everything that the page shows, as plain values; rates are per second."""
        now = self._take((*_LOAD, *_ANSWERS, *_NOW))
        recent = MetricDelta(self._recent[0] if self._recent else now, now)
        lately = MetricDelta(self._minutes[0] if self._minutes else now, now)
        known = accuracies(self._metrics)
        workers = now.metrics.sum("penult_fronts_ready") if "penult_fronts_ready" in now.metrics.values else None
        return {
            "penult": importlib.metadata.version("penult"),
            "state": self._state(),
            "time": now.time,
            "uptime_s": round(now.time - self._started),
            "fronts": None if workers is None else {"ready": workers, **_deaths(now)},
            "models": [
                _model(labels, now.metrics, lately)
                | {"estimate": None, "live": None}
                | known.get((labels["model"], labels["version"]), {})
                | self._details(labels)
                for labels in _served(now)
            ],
            "not_served": self._not_served(),
            "shadows": shadows(self._metrics, now.metrics),
            "load": _load(now.metrics, recent),
            "total": _total(now.metrics),
            "history": {"every_s": EVERY_S, "points": _POINTS} | _history([*self._points]),
            "events": None if self._events is None else self._events.to_dicts(),
            "lookup": {name: now.metrics.sum(f"penult_lookup_{name}") for name in ("collections", "items")},
            "collections": [_collection(each) for each in self._collections.listed] if self._collections else [],
        }

    def _take(self, families: Sequence[str]) -> TimedSnapshot:
        return take(self._metrics.samples(families))

    def _details(self, labels: Mapping[str, str]) -> dict[str, Any]:
        """Return facts about a model that metrics do not contain."""
        for model in self._repository.versions(labels["model"]) if self._repository else ():
            if str(model.version) == labels["version"]:
                return {
                    "class_count": len(model.manifest.classes),
                    "scorers": list(model.scorers),
                    "default_scorer": model.manifest.default_scorer,
                    "precision": model.manifest.precision,
                    "descriptor_length": model.manifest.descriptor_length,
                    "has_report": has_report(model.manifest),
                }
        return {}

    def _not_served(self) -> list[dict[str, Any]]:
        """Return the known versions that are not served, with the reasons."""
        return [asdict(entry) for entry in self._repository.index() if entry.state != READY] if self._repository else []


@dataclass(frozen=True)
class _Point:
    """One place on the curves."""

    requests_per_s: float
    p99_ms: float | None
    queue_depth: float


def _point(before: TimedSnapshot, after: TimedSnapshot) -> _Point:
    gained = MetricDelta(before, after, "penult_requests_total", "penult_request_seconds_bucket")
    (p99,) = gained.quantiles_ms(0.99)
    return _Point(gained.rate(sum(gained.requests().values())), p99, after.metrics.sum("penult_queue_depth"))


def _history(points: list[_Point]) -> dict[str, Any]:
    return {name: [getattr(point, name) for point in points] for name in ("requests_per_s", "p99_ms", "queue_depth")}


def _deaths(now: TimedSnapshot) -> dict[str, float]:
    return {"deaths": now.metrics.sum("penult_front_deaths_total")}


def _served(now: TimedSnapshot) -> list[dict[str, str]]:
    served = [dict(key) for key, value in now.metrics.of("penult_model_info").items() if value]
    return sorted(served, key=lambda labels: (labels["model"], int(labels["version"])))


def _total(metrics: MetricSnapshot) -> dict[str, Any]:
    """Return counts since the start."""
    by_code = metrics.requests()
    return {
        "requests": sum(by_code.values()),
        "errors": {code: count for code, count in by_code.items() if code != "OK" and count},
        "images": metrics.sum("penult_images_total"),
    }


def _load(now: MetricSnapshot, recent: MetricDelta) -> dict[str, Any]:
    by_code = recent.requests()
    spent = recent.by("penult_phase_seconds_sum", "phase")
    counts = recent.by("penult_phase_seconds_count", "phase")
    p50, p99 = recent.quantiles_ms(0.5, 0.99)
    return {
        "seconds": recent.seconds,
        "requests_per_s": recent.rate(sum(by_code.values())),
        "images_per_s": recent.rate(recent.sum("penult_images_total")),
        "queue_depth": now.sum("penult_queue_depth"),
        "errors_per_s": {code: recent.rate(count) for code, count in by_code.items() if code != "OK"},
        "dropped_per_s": {
            reason: recent.rate(count) for reason, count in recent.by("penult_dropped_total", "reason").items()
        },
        "p50_ms": p50,
        "p99_ms": p99,
        "phases_ms": {phase: 1000 * spent.get(phase, 0.0) / count for phase, count in counts.items()},
    }


def _model(labels: dict[str, str], now: MetricSnapshot, lately: MetricDelta) -> dict[str, Any]:
    which = {"model": labels["model"], "version": labels["version"]}
    answers = lately.by("penult_answers_total", "label", **which)
    whole = sum(answers.values())
    baseline = now.sums("penult_baseline_class_share", "label", **which)
    usual = now.by("penult_baseline_confidence", "scorer", **which)
    spent = lately.by("penult_confidence_sum", "scorer", **which)
    counts = lately.by("penult_confidence_count", "scorer", **which)
    names = [*now.sums("penult_answers_total", "label", **which)]
    photos = now.sum("penult_baseline_photos", **which) or None
    judged = partial(trend, photos=photos, rows=len(names) + len(counts) + 1)
    classes: list[dict[str, Any]] = [
        {"label": name, "share": share, "baseline": baseline.get(name),
         "trend": judged(share, whole, baseline.get(name))}
        for name in names
        for share in [answers.get(name, 0.0) / whole if whole else None]
    ]  # fmt: skip
    classes.sort(key=lambda each: (-(each["share"] or 0), -(each["baseline"] or 0)))
    means = {scorer: spent.get(scorer, 0.0) / count for scorer, count in counts.items()}
    novel = lately.share("penult_novel_total", "penult_novelty_ratio_count", **which)
    novel_usual = now.sum("penult_baseline_novel_share", **which) if baseline else None
    return {
        **labels,
        "answers": whole,
        "baseline_photos": photos,
        "classes": classes[:_MAX_CLASSES],
        "classes_left_out": _left_out(classes[_MAX_CLASSES:]),
        "confidence": {
            scorer: {"mean": mean, "baseline": usual.get(scorer),
                     "trend": judged(mean, counts[scorer], usual.get(scorer))}
            for scorer, mean in means.items()
        },
        "novel_share": novel,
        "novel_baseline": novel_usual,
        "novel_trend": judged(novel, lately.sum("penult_novelty_ratio_count", **which), novel_usual),
    }  # fmt: skip


def _left_out(classes: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return how many classes are left out, and which share of the answers named one of them."""
    if not classes:
        return None
    return {"count": len(classes), "share": sum(each["share"] or 0.0 for each in classes)}


def _collection(listed: Listed) -> dict[str, Any]:
    spec, stats = listed.spec, listed.stats
    return {
        "name": spec.name, "items": stats.items, "model": spec.model, "fingerprint": spec.fingerprint,
        "dimension": spec.dimension, "index": stats.index, "memory_bytes": stats.memory_bytes,
    }  # fmt: skip
