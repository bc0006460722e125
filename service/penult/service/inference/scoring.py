"""From a model's outputs to classes: scores, calibrated probabilities, ranking and drift counts, for every protocol."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from penult.bundle.errors import PenultError
from penult.bundle.manifest import DENSE, NOVELTY, SVM
from penult.bundle.scores import Floats, softmax
from penult.service.errors import LacksScorer
from penult.service.inference.abstaining import AnswerLimits
from penult.service.inference.drift import DriftMonitor
from penult.service.inference.request import ModelOutput, Output
from penult.service.inference.results import Answer, Outcome, Scored
from penult.service.models.loader import ServedModel
from penult.service.observability.metrics import Metrics

# With so many times more classes than are asked for, sorting all of them costs more than finding the best first.
_FEW = 20


@dataclass(frozen=True)
class ClassScores:
    """One scorer's scores and calibrated probabilities, both float32 [N, classes]."""

    classes: Sequence[str]
    scores: Floats
    probabilities: Floats

    @classmethod
    def of(cls, scores: Floats, classes: Sequence[str], temperature: float) -> "ClassScores":
        """Return scores with the probabilities that a temperature makes of them."""
        return cls(classes, scores, softmax(scores, temperature))

    def best(self) -> list[tuple[str, float]]:
        """Return the best class of each image and its probability; of equal scores, the first class."""
        labels = [self.classes[column] for column in self.scores.argmax(axis=1)]
        return list(zip(labels, self.probabilities.max(axis=1).tolist(), strict=True))

    def ranked(self, top_k: int) -> list[tuple[Scored, ...]]:
        """Return the `top_k` best classes of each image, best first; of equal scores, the first class first."""
        best = _best(self.scores, top_k)
        rows = np.arange(len(best))[:, None]
        scores, probabilities = self.scores[rows, best].tolist(), self.probabilities[rows, best].tolist()
        return [
            tuple([Scored(self.classes[c], s, p) for c, s, p in zip(*row, strict=True)])
            for row in zip(best.tolist(), scores, probabilities, strict=True)
        ]


class Scoring:
    """Scores the outputs of one model, from any thread, and counts the answers."""

    def __init__(self, model: ServedModel, metrics: Metrics) -> None:
        """Score outputs of `model`."""
        self.model = model
        self.drift = DriftMonitor(metrics, model)

    def classify(
        self, scorer: str, top_k: int, limits: AnswerLimits | None, outputs: Sequence[Output]
    ) -> list[Outcome]:
        """Return one outcome per output, with the `top_k` best classes; count classes, novelty and withheld answers.

        With `limits` None, no answer is withheld.
        """
        good = [output for output in outputs if isinstance(output, ModelOutput)]
        if not good:
            return [output for output in outputs if isinstance(output, PenultError)]
        descriptors = stacked([output.descriptor for output in good])
        distances = self.novelty(descriptors)
        if scorer == NOVELTY:
            ranked = self.by_novelty(distances).ranked(top_k)
        else:
            scores = stacked([output.logits for output in good]) if scorer == DENSE else self.svm_scores(descriptors)
            ranked = self._probable(scorer, scores).ranked(top_k)
        self.drift.record_classes(scorer, [(row[0].label, row[0].probability) for row in ranked])
        found = self._outcomes(outputs, good, ranked, distances)
        return found if limits is None else self._withheld(found, limits)

    def describe(self, outputs: Sequence[Output]) -> list[Outcome]:
        """Return one outcome per output, without classes; count novelty."""
        good = [output for output in outputs if isinstance(output, ModelOutput)]
        distances = self.novelty(stacked([output.descriptor for output in good])) if good else None
        return self._outcomes(outputs, good, [()] * len(good), distances)

    def confidence(self, logits: Sequence[Floats], descriptors: Sequence[Floats]) -> list[float] | None:
        """Return the probability of each image's best class by the default scorer; None of a model of one class.

        Nothing is counted. Logits and descriptors are float32 [1, …] of each image.
        """
        scorer = self.model.manifest.default_scorer
        if scorer == NOVELTY:
            return None
        scores = stacked(logits) if scorer == DENSE else self.svm_scores(stacked(descriptors))
        found: list[float] = self._probable(scorer, scores).probabilities.max(axis=1).tolist()
        return found

    def svm_scores(self, descriptors: Floats) -> Floats:
        """Return the SVM's scores, float32 [N, classes], of descriptors float32 [N, length]."""
        assert self.model.svm is not None  # callers check the scorer first
        return self.model.svm(descriptors)

    def novelty(self, descriptors: Floats) -> Floats | None:
        """Return how far descriptors float32 [N, length] are from the training images, float32 [N].

        Without a baseline it is None.
        """
        return self.model.novelty(descriptors) if self.model.novelty else None

    def by_novelty(self, distances: Floats | None) -> ClassScores:
        """Return the one class of images of this novelty, with its score and probability; count nothing.

        The score is what is left to the threshold, below 0 for a novel image. The probability is the share of held-out
        images of the class that are at least as far.
        """
        baseline = self.model.baseline
        assert baseline is not None and distances is not None  # the manifest requires a baseline of one class
        scores = np.float32(baseline.threshold) - distances
        return ClassScores(self.model.manifest.classes, scores[:, None], baseline.probability(distances)[:, None])

    def rank_descriptors(self, descriptors: Floats, top_k: int, limits: AnswerLimits | None = None) -> list[Answer]:
        """Return the `top_k` best classes of descriptors float32 [N, length]; count nothing.

        They are those of the SVM, or the one class of a model that scores by novelty. With `limits` None, no answer is
        withheld.
        """
        if NOVELTY not in self.model.scorers:
            ranked = self._probable(SVM, self.svm_scores(descriptors)).ranked(top_k)
            reasons = [""] * len(ranked)
            if limits:
                reasons = self.reasons(limits, ranked, self.are_novel(self.novelty(descriptors), len(ranked)))
            rows = zip(ranked, descriptors, reasons, strict=True)
            return [Answer(classes, row, abstained=reason) for classes, row, reason in rows]
        distances = self.novelty(descriptors)
        assert distances is not None  # as in by_novelty()
        ranked = self.by_novelty(distances).ranked(top_k)
        return [
            Answer(classes, row, novelty=float(distance), is_novel=classes[0].score < 0)
            for classes, row, distance in zip(ranked, descriptors, distances, strict=True)
        ]

    def are_novel(self, distances: Floats | None, count: int) -> list[bool]:
        """Return whether each of `count` images is novel, by their novelty float32 [N]; without a baseline none is."""
        baseline = self.model.baseline
        if distances is None or baseline is None:
            return [False] * count
        found: list[bool] = (distances > baseline.threshold).tolist()
        return found

    def reasons(self, limits: AnswerLimits, ranked: Sequence[tuple[Scored, ...]], novel: Sequence[bool]) -> list[str]:
        """Return why the answer to each image is withheld, "" if it is given; count nothing."""
        return [limits.reason(row[0], is_novel) for row, is_novel in zip(ranked, novel, strict=True)]

    def withheld(self, limits: AnswerLimits | None, found: ClassScores, distances: Floats | None) -> NDArray[np.bool_]:
        """Return which answers are withheld, bool [N], by scores and novelty float32 [N]; count them."""
        ranked, count = found.ranked(1), len(found.scores)
        reasons = self.reasons(limits, ranked, self.are_novel(distances, count)) if limits else [""] * count
        self.drift.record_abstained(reasons)
        return np.array([reason != "" for reason in reasons])

    def _withheld(self, outcomes: list[Outcome], limits: AnswerLimits) -> list[Outcome]:
        """Return outcomes in which answers are withheld; count them."""
        answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
        reasons = self.reasons(limits, [answer.classes for answer in answers], [answer.is_novel for answer in answers])
        self.drift.record_abstained(reasons)
        each = iter(reasons)
        return [replace(o, abstained=next(each)) if isinstance(o, Answer) else o for o in outcomes]

    def record(self, scorer: str, scores: Floats) -> ClassScores:
        """Count the best classes of scores float32 [N, classes]; return the scores with probabilities."""
        found = self._probable(scorer, scores)
        self.drift.record_classes(scorer, found.best())
        return found

    def record_by_novelty(self, distances: Floats | None) -> ClassScores:
        """Count the class of images of this novelty; return it as by_novelty() does."""
        found = self.by_novelty(distances)
        self.drift.record_classes(NOVELTY, found.best())
        return found

    def _probable(self, scorer: str, scores: Floats) -> ClassScores:
        manifest = self.model.manifest
        return ClassScores.of(scores, manifest.classes, manifest.temperatures[scorer])

    def _outcomes(
        self,
        outputs: Sequence[Output],
        good: Sequence[ModelOutput],
        ranked: Sequence[tuple[Scored, ...]],
        distances: Floats | None,
    ) -> list[Outcome]:
        novelty = [(None, False)] * len(good) if distances is None else self.drift.record_novelty(distances)
        answers = (
            Answer(classes, output.descriptor[0], novelty=distance, is_novel=is_novel, logits=output.logits)
            for output, classes, (distance, is_novel) in zip(good, ranked, novelty, strict=True)
        )
        return [output if isinstance(output, PenultError) else next(answers) for output in outputs]


def stacked(rows: Sequence[Floats]) -> Floats:
    """Return rows float32 [1, n] as one array [N, n]; a single one is not copied."""
    return rows[0] if len(rows) == 1 else np.concatenate(rows)


def check_has(model: ServedModel, scorer: str) -> None:
    """Raise LacksScorer if a model has no such scorer."""
    if scorer not in model.scorers:
        raise LacksScorer(
            "SCORER_MISSING",
            f"{model.name} version {model.version} has no {scorer} scorer; ask for {' or '.join(model.scorers)}",
        )


def _best(scores: Floats, top_k: int) -> NDArray[np.intp]:
    """Return the columns of the `top_k` largest scores of each row, best first; of equal scores, the first column."""
    if not 0 < _FEW * top_k < scores.shape[1]:
        return np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    # Of thousands of classes, only those that can be among the best are sorted.
    limits = -np.partition(-scores, top_k - 1, axis=1)[:, top_k - 1]
    rows = [np.flatnonzero(row >= limit) for row, limit in zip(scores, limits, strict=True)]
    best = [found[np.argsort(-row[found], kind="stable")[:top_k]] for row, found in zip(scores, rows, strict=True)]
    return np.array(best)
