"""Metrics of how good answers are: the estimate without labels, and what feedback says."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from penult.service.observability.answer_window import Estimate
from penult.service.observability.truths import Summary

log = logging.getLogger(__name__)

_MODEL = ("model", "version")
_OUTCOME = (*_MODEL, "outcome")
# Name, help and labels. Counters end in _total.
FAMILIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "penult_estimated_accuracy": ("Accuracy on the latest answers, estimated from their probabilities.", _MODEL),
    "penult_estimated_accuracy_low": ("Lower end of its 95 % interval.", _MODEL),
    "penult_estimated_accuracy_high": ("Upper end of its 95 % interval.", _MODEL),
    "penult_estimated_accuracy_reliable": ("0 if few answers, novelty or class mix make it unreliable.", _MODEL),
    "penult_estimated_accuracy_answers": ("Answers that the estimate is made of.", _MODEL),
    "penult_feedback_total": ("Verdicts about answers, by outcome.", _OUTCOME),
    "penult_feedback_replaced_total": ("Verdicts that a later one about the same answer replaced.", _OUTCOME),
    "penult_live_accuracy": ("Share of right answers among the latest with feedback.", _MODEL),
    "penult_live_accuracy_low": ("Lower end of its 95 % interval.", _MODEL),
    "penult_live_accuracy_high": ("Upper end of its 95 % interval.", _MODEL),
    "penult_live_accuracy_answers": ("Answers that it is measured on.", _MODEL),
    "penult_feedback_confusion": (
        "Answers with feedback, by answered and right class.",
        (*_MODEL, "answered", "label"),
    ),
}

# What is known now: an estimate for each version with answers, a summary for each with feedback.
Accuracy = Callable[[], tuple[Iterable[Estimate], Iterable[Summary]]]


class AccuracyCollector(Collector):
    """Computes these metrics when they are read."""

    def __init__(self, read: Accuracy) -> None:
        """Export what `read` returns."""
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without samples."""
        return [_family(name) for name in FAMILIES]

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        found = {name: _family(name) for name in FAMILIES}
        try:
            estimates, summaries = self._read()
            for estimate in estimates:
                _add_estimate(found, estimate)
            for summary in summaries:
                _add_summary(found, summary)
        except OSError as error:  # the other metrics are read all the same
            log.warning("the file of feedback cannot be read: %s", error)
        yield from found.values()


def _family(name: str) -> Metric:
    text, labels = FAMILIES[name]
    if name.endswith("_total"):
        return CounterMetricFamily(name, text, labels=labels)
    return GaugeMetricFamily(name, text, labels=labels)


def _add_estimate(found: Mapping[str, Metric], estimate: Estimate) -> None:
    values = {
        "": estimate.accuracy, "_low": estimate.low, "_high": estimate.high, "_reliable": not estimate.reasons,
        "_answers": estimate.answers,
    }  # fmt: skip
    for end, value in values.items():
        _add(found, f"penult_estimated_accuracy{end}", (estimate.model, estimate.version), value)


def _add_summary(found: Mapping[str, Metric], summary: Summary) -> None:
    model = summary.model, str(summary.version)
    for outcome, count in summary.counts.items():
        _add(found, "penult_feedback_total", (*model, outcome), count)
    for outcome, count in summary.replaced.items():
        _add(found, "penult_feedback_replaced_total", (*model, outcome), count)
    for (answered, label), count in summary.confusion.items():
        _add(found, "penult_feedback_confusion", (*model, answered, label), count)
    if live := summary.live:
        values = {"": live.accuracy, "_low": live.low, "_high": live.high, "_answers": live.answers}
        for end, value in values.items():
            _add(found, f"penult_live_accuracy{end}", model, value)


def _add(found: Mapping[str, Metric], name: str, labels: tuple[str, ...], value: float) -> None:
    family = found[name]
    assert isinstance(family, GaugeMetricFamily | CounterMetricFamily)  # as _family() makes them
    family.add_metric(list(labels), float(value))
