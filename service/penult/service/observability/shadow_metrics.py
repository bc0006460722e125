"""Metrics of shadows: versions whose answers are only compared."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from penult.service.observability.comparisons import Compared

_PAIR = ("model", "version", "primary")
_OF = (*_PAIR, "of")
PRIMARY, SHADOW = "primary", "shadow"
# Name, help and labels; `version` is the shadow's, `primary` the version that clients got.
FAMILIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "penult_shadow_agreement": ("Share of images to which shadow and primary give the same class.", _PAIR),
    "penult_shadow_agreement_images": ("Images that it is measured on.", _PAIR),
    "penult_shadow_confidence": ("Mean probability of the best class, of the compared images.", _OF),
    "penult_shadow_seconds": ("Mean time to decode, run and score one image.", _OF),
    "penult_shadow_feedback": ("Answers with feedback, by which version is right.", (*_PAIR, "outcome")),
    "penult_shadow_worse": ("1 if the shadow is worse by more than chance explains.", _PAIR),
}


class ShadowCollector(Collector):
    """Computes these metrics when they are read."""

    def __init__(self, read: Callable[[], Iterable[Compared]]) -> None:
        """Export what `read` returns."""
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without samples."""
        return _families().values()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        found = _families()
        for compared in self._read():
            _add(found, compared)
        yield from found.values()


def _families() -> dict[str, GaugeMetricFamily]:
    return {name: GaugeMetricFamily(name, text, labels=labels) for name, (text, labels) in FAMILIES.items()}


def _add(found: Mapping[str, GaugeMetricFamily], compared: Compared) -> None:
    pair = [compared.model, str(compared.version), str(compared.primary)]
    if agreement := compared.agreement:
        found["penult_shadow_agreement"].add_metric(pair, agreement.share)
        found["penult_shadow_agreement_images"].add_metric(pair, agreement.answers)
    for name, values in (("confidence", compared.confidence), ("seconds", compared.seconds)):
        for of, value in zip((PRIMARY, SHADOW), values or (), strict=False):
            found[f"penult_shadow_{name}"].add_metric([*pair, of], value)
    for outcome, count in compared.found.items():
        found["penult_shadow_feedback"].add_metric([*pair, outcome], count)
    found["penult_shadow_worse"].add_metric(pair, float(compared.is_worse))
