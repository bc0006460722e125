"""`penult compare`: two versions of a model on the same labelled photos. It changes no version, and needs no PyTorch.

Both versions are loaded as the server loads them, golden tests included, and answer as it would.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from penult.bundle.manifest import DENSE
from penult.bundle.naming import model_name
from penult.bundle.preprocess import Pixels
from penult.bundle.reader import read_bundle
from penult.bundle.scores import Floats
from penult.console import say
from penult.export.config.compare import CompareSettings, check_comparable
from penult.export.data.loader import Cache, PhotoReader
from penult.export.data.splitting import Photo
from penult.export.disk import replace_file
from penult.export.evaluation.accuracy import counted
from penult.export.evaluation.cpu_time import in_turns
from penult.export.evaluation.folds import groups_of
from penult.export.evaluation.versions import WORSE, Answers, Classes, Comparison
from penult.export.jobs.compare_photos import ChosenPhotos, alone
from penult.export.jobs.refit import TrainingRecord, load_as_trained
from penult.export.report import compare_page
from penult.export.report.compare_page import SideBySide
from penult.interrupts import pool
from penult.service.models.loader import Placement, ServedModel, load
from penult.service.runtime.cpu_count import cores

_BATCH = 32
# The CPU time is measured on so many photos, one at a time.
_TIMED = 8


@dataclass(frozen=True)
class Compared:
    """What was found, and the folder with the results.

    Attributes:
        failure: Why the latter version does not pass fail_if_worse or max_loss, in one line; "" if it does.
    """

    folder: Path
    found: SideBySide
    failure: str

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / compare_page.PAGE_NAME

    @property
    def table(self) -> Path:
        """The answers of both versions, photo by photo."""
        return self.folder / compare_page.TABLE_NAME

    @property
    def is_worse(self) -> bool:
        """Whether the latter version is worse by more than chance."""
        return bool(self.found.comparison.outcome["verdict"] == WORSE)

    @property
    def sentence(self) -> str:
        """The outcome in words."""
        return str(self.found.comparison.outcome["sentence"])

    def as_json(self) -> dict[str, Any]:
        """Return the result of --json."""
        answer = self.found.as_json()
        return answer | {"failure": self.failure or None, "page": str(self.page), "table": str(self.table)}


def compare(settings: CompareSettings) -> Compared:
    """Compare two versions, and write the results to settings.out.

    Raises:
        PenultError: A version, its scorer or the photos cannot be used, or the results cannot be written.
    """
    settings = replace(settings, versions=settings.pair)  # so that a version published meanwhile changes nothing
    bundles = [read_bundle(settings.model, version) for version in settings.pair]
    scorers = [check_comparable(bundle.manifest, bundle.version, settings.scorer) for bundle in bundles]
    splits = load_as_trained(settings, bundles[1], TrainingRecord.of(bundles[1].manifest))
    chosen = ChosenPhotos.of(splits, settings.split, Classes.of(*(bundle.manifest.classes for bundle in bundles)))
    versions = [_Version(load(b, Placement("cpu")), scorer) for b, scorer in zip(bundles, scorers, strict=True)]
    say(
        f"{bundles[0].name} versions {' and '.join(f'{v.model.version} ({v.scorer})' for v in versions)}; "
        f"{len(chosen.compared)} photos of {chosen.classes.common} classes that both know"
    )
    scores, crops = _scores(versions, chosen.photos)
    comparison = _comparison(versions, scores, chosen)
    right = [
        alone(chosen.classes, which, chosen.labels, chosen.classes.places[which][scores[which].argmax(axis=1)])
        for which in (0, 1)
    ]
    say("measuring the CPU time")
    times = in_turns(_timed(versions[0], crops[0]), _timed(versions[1], crops[1]), len(crops[0]))
    found = SideBySide(
        name=model_name(settings.model),
        split=settings.split,
        splits=splits,
        photos=chosen.compared,
        comparison=comparison,
        alone=(right[0], right[1]),
        unknown=chosen.unknown,
        times=times,
        network_bytes=(len(bundles[0].onnx), len(bundles[1].onnx)),
        seen=chosen.seen(settings.model, bundles),
        notes=(*splits.notes, *chosen.notes(bundles, scorers, right)),
        shows_photos=settings.report_photos,
    )
    for note in found.notes:
        say(f"note: {note}")
    for name, content in compare_page.comparison_files(found).items():
        replace_file(settings.folder / name, content)
    return Compared(settings.folder, found, _failure(settings, comparison))


@dataclass(frozen=True)
class _Version:
    """A version as it is served, and its scorer."""

    model: ServedModel
    scorer: str

    def scores(self, pixels: Pixels) -> Floats:
        """Map uint8 [N, crop, crop, 3] to scores float32 [N, classes]."""
        logits, descriptors = self.model.session.run(pixels)
        if self.scorer == DENSE:
            return logits
        assert self.model.svm is not None  # the manifest has this scorer
        return self.model.svm(descriptors)


def _scores(versions: Sequence[_Version], photos: Sequence[Photo]) -> tuple[list[Floats], list[Pixels]]:
    """Return the scores [N, classes] of each version, and a few crops that it is timed on.

    If both have the same preprocessing, each photo is decoded once. A run has one thread, as on a server, so several
    run at once.
    """
    found: list[list[Floats]] = [[] for _ in versions]
    few: list[Pixels] = [np.empty(0, dtype=np.uint8)] * len(versions)
    specs = list(dict.fromkeys(version.model.manifest.preprocess for version in versions))
    with pool(cores()) as threads:
        for spec in specs:
            own = [n for n, version in enumerate(versions) if version.model.manifest.preprocess == spec]
            what = " and ".join(f"version {versions[n].model.version}" for n in own)
            for pixels, _ in PhotoReader(spec, Cache(0), _BATCH).crops(photos, f"answers of {what}"):
                parts = [part for part in np.array_split(pixels, cores()) if len(part)]
                for n in own:
                    found[n] += threads.map(versions[n].scores, parts)
                    few[n] = few[n] if len(few[n]) else pixels[:_TIMED].copy()
    return [np.concatenate(rows) for rows in found], few


def _timed(version: _Version, crops: Pixels) -> Callable[[int], Floats]:
    """Return a function that runs one of the crops, uint8 [n, crop, crop, 3]."""
    return lambda at: version.scores(crops[at : at + 1])


def _comparison(versions: Sequence[_Version], scores: Sequence[Floats], chosen: ChosenPhotos) -> Comparison:
    """Return the comparison on the photos of the classes that both versions know."""
    rows, classes = chosen.are_common, chosen.classes
    labels = chosen.labels[rows]
    answers = [
        Answers.of(v.model.version, v.model.manifest, v.scorer, values[rows], labels, places)
        for v, values, places in zip(versions, scores, classes.places, strict=True)
    ]
    # Both or neither have few photos: they share a table, which shows intervals or shares.
    few = any(each.figures["few_photos"] for each in answers)
    before, after = (replace(each, figures=each.figures | {"few_photos": few}) for each in answers)
    return Comparison(classes, labels, groups_of(chosen.compared), before, after)


def _failure(settings: CompareSettings, comparison: Comparison) -> str:
    """Return why the latter version does not pass the gates that were asked for; "" if it does."""
    before, after, outcome = comparison.before, comparison.after, comparison.outcome
    lost = round(-100 * outcome["difference"], 9)
    figures = f"{counted(after.figures)} correct, version {before.version} {counted(before.figures)}"
    if settings.max_loss is not None and lost > settings.max_loss:
        return f"version {after.version} loses {lost:.2f} points, more than --max-loss {settings.max_loss:g}: {figures}"
    if settings.fail_if_worse and outcome["verdict"] == WORSE:
        return f"version {after.version} is worse by more than chance (--fail-if-worse): {figures}"
    return ""
