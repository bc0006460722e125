"""What a model's answers are like, as metrics, beside what they were like on its validation photos.

Counts are of photos, whichever door they came in by. Labels are the model's own classes: nothing a client sends is one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from penult.bundle.manifest import SCORERS
from penult.bundle.scores import Floats
from penult.lookup.types import Hit
from penult.service.inference.results import Answer
from penult.service.models.loader import ServedModel
from penult.service.observability.metrics import Metrics


class DriftMonitor:
    """Counts one model's answers, from any thread."""

    def __init__(self, metrics: Metrics, model: ServedModel) -> None:
        """Begin at 0, with every class there, so that one that is never named shows; state the baseline."""
        self._metrics, self._baseline = metrics, model.baseline
        self._labels = model.name, str(model.version)
        series = metrics.series_of(model.manifest.classes, model.baseline)
        counters = {label: metrics.answers.labels(*self._labels, label) for label in dict.fromkeys(series.values())}
        self._series, self._named = [*counters], {name: counters[label] for name, label in series.items()}
        self._confidence = {name: metrics.confidence.labels(*self._labels, name) for name in model.scorers}
        self._distance = metrics.neighbour_distance.labels(*self._labels)
        if model.baseline:
            self._ratio = metrics.novelty_ratio.labels(*self._labels)
            self._novel = metrics.novel.labels(*self._labels)
            metrics.state_baseline(self._labels, model.manifest.classes, model.baseline)

    def judged(self, answers: Sequence[Answer], descriptors: Floats) -> list[Answer]:
        """Count how novel photos are, and return their answers with that; descriptors are float32 [N, length]."""
        novelty = self.novel(descriptors)
        if novelty is None:
            return list(answers)
        assert self._baseline  # else there is no novelty
        above = novelty > self._baseline.threshold
        return [
            replace(answer, novelty=far, is_novel=is_novel)
            for answer, far, is_novel in zip(answers, novelty.tolist(), above.tolist(), strict=True)
        ]

    def novel(self, descriptors: Floats) -> Floats | None:
        """Count how novel photos are, and return that, float32 [N]; None without a baseline."""
        if not self._baseline:
            return None
        novelty = self._baseline.novelty(descriptors)
        for ratio in (novelty / self._baseline.threshold).tolist():
            self._ratio.observe(ratio)
        if count := int(np.count_nonzero(novelty > self._baseline.threshold)):
            self._novel.inc(count)
        return novelty

    def named(self, scorer: str, best: Iterable[tuple[str, float]]) -> None:
        """Count the best classes of a scorer, with their probabilities."""
        confidence = self._confidence[scorer]
        for label, probability in best:
            self._named[label].inc()
            confidence.observe(probability)

    def neighbours(self, found: Iterable[Sequence[Hit]]) -> None:
        """Count how far the nearest stored items are; what has none, does not count."""
        for hits in found:
            if hits:
                self._distance.observe(max(0.0, 1 - hits[0].similarity))

    def end(self) -> None:
        """Forget the model."""
        self._metrics.forget_answers(self._labels, self._series, SCORERS)
