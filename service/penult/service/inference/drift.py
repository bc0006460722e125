"""What a model's answers are like, as metrics, beside what they were like on its validation photos.

Counts are of photos, whichever door they came in by. Labels are the model's own classes: nothing a client sends is one.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from penult.bundle.manifest import NOVELTY, SCORERS
from penult.bundle.scores import Floats
from penult.lookup.types import Hit
from penult.service.inference.results import NOVEL, UNSURE
from penult.service.models.loader import ServedModel
from penult.service.observability.answer_window import Reference
from penult.service.observability.metrics import Metrics


class DriftMonitor:
    """Counts one model's answers, from any thread."""

    def __init__(self, metrics: Metrics, model: ServedModel) -> None:
        """Begin at 0, with every class there, so that one that is never named shows; state the baseline."""
        self._metrics = metrics
        self._threshold = model.baseline.threshold if model.baseline else 0.0
        self._labels = model.name, str(model.version)
        series = metrics.series_of(model.manifest.classes, model.baseline)
        counters = {
            label: metrics.counting(metrics.answers.labels(*self._labels, label))
            for label in dict.fromkeys(series.values())
        }
        self._series = [*counters]
        self._counters = {name: counters[label] for name, label in series.items()}
        self._confidence = {
            name: metrics.observing(metrics.confidence.labels(*self._labels, name)) for name in model.scorers
        }
        # At 0 before the first, so that a rise is seen.
        self._abstained = {
            reason: metrics.counting(metrics.abstained.labels(*self._labels, reason))
            for reason in (UNSURE, NOVEL) * bool(model.manifest.operating_points)
        }
        # Probabilities of one class are shares of its photos that are as far: no chances of being right.
        scorer = model.manifest.default_scorer
        self._estimated = "" if scorer == NOVELTY else scorer
        self._window = metrics.windows.open(self._labels, Reference.of(model.manifest.classes, model.baseline))
        self._distance = metrics.neighbour_distance.labels(*self._labels)
        if model.baseline:
            self._ratio = metrics.observing(metrics.novelty_ratio.labels(*self._labels))
            self._novel = metrics.counting(metrics.novel.labels(*self._labels))
            metrics.state_baseline(self._labels, model.manifest.classes, model.baseline)

    def record_novelty(self, distances: Floats) -> list[tuple[float, bool]]:
        """Count the novelty of images, float32 [N], of a model with a baseline.

        Returns:
            The novelty of each image and whether it is above the threshold.

        """
        self._ratio.observe_all((distances / self._threshold).tolist())
        above = distances > self._threshold
        self._window.add_novelty(above.tolist())
        if count := int(np.count_nonzero(above)):
            self._novel.inc(count)
        return list(zip(distances.tolist(), above.tolist(), strict=True))

    def record_classes(self, scorer: str, best: Iterable[tuple[str, float]]) -> None:
        """Count the best class of each image, by a scorer, and its probability."""
        best = list(best)
        for label, _ in best:
            self._counters[label].inc()
        if scorer == self._estimated:
            self._window.add_answers(best)
        self._confidence[scorer].observe_all([probability for _, probability in best])

    def record_abstained(self, reasons: Iterable[str]) -> None:
        """Count the answers that are withheld, by reason; "" is none."""
        for reason in reasons:
            if reason:
                self._abstained[reason].inc()

    def record_neighbours(self, found: Iterable[Sequence[Hit]]) -> None:
        """Count the distance of each image to its nearest stored item; images without one do not count."""
        for hits in found:
            if hits:
                self._distance.observe(max(0.0, 1 - hits[0].similarity))

    def end(self) -> None:
        """Forget the model."""
        self._metrics.windows.forget(self._labels)
        self._metrics.forget_answers(self._labels, self._series, (*SCORERS, NOVELTY))
