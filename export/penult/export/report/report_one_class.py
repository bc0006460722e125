"""Write the report and MODEL_CARD.md of a model with one class: distances of photos instead of confusions."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.bundle.manifest import Manifest
from penult.bundle.preprocess import Pixels
from penult.bundle.scores import Floats
from penult.drawing import inline
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import Splits
from penult.export.data.splitting import Photo
from penult.export.evaluation import accuracy
from penult.export.report import plot_one_class
from penult.export.report.gallery import data_uri
from penult.export.report.report import STATUS_PAGE, TEMPLATES, command
from penult.folders.names import printable

_MAX_PHOTOS = 12


@dataclass(frozen=True)
class OneClassData:
    """The contents of a report.

    Attributes:
        distances: The novelty [N] of each split's photos, by the measure that is served.
        held_out: The distances that the threshold was chosen on, rising.
        by_measure: The novelty of test photos and of outliers, by measure.
        outliers: Photos of other things, in the order of their novelty.
        probabilities: [N] of the test photos.
        crops: Returns photos as uint8 [n, size, size, 3]; None if the report must not show photos.
    """

    name: str
    manifest: Manifest
    splits: Splits
    metrics: dict[str, Any]
    distances: Mapping[str, Floats]
    held_out: Floats
    by_measure: Mapping[str, tuple[Floats, Floats]]
    outliers: tuple[Photo, ...]
    probabilities: Floats | None = None
    settings: TrainSettings | None = None
    crops: Callable[[Sequence[Photo]], Pixels] | None = None

    @property
    def threshold(self) -> float:
        """The novelty above which a photo is novel."""
        return float(self.metrics["novelty"]["threshold"])

    @property
    def of_outliers(self) -> Floats:
        """The novelty of the outliers, by the measure that is served."""
        return self.by_measure[self.manifest.measure][1]


@dataclass(frozen=True)
class _Shown:
    """A photo as a data URI, and its novelty in units of the threshold."""

    uri: str
    ratio: float


def report_files(report: OneClassData) -> dict[str, bytes]:
    """Return the files of the report by their path in the bundle."""
    plots = {
        "novelty.svg": plot_one_class.distances(
            report.held_out, report.distances["test"], report.of_outliers, report.threshold
        )
    }
    if report.outliers:
        thresholds = {name: found["threshold"] for name, found in report.metrics["novelty"]["measures"].items()}
        plots["roc.svg"] = plot_one_class.roc_curves(report.by_measure, thresholds)

    def drawn(file: str, description: str) -> str:
        return inline(plots[file], file.removesuffix(".svg"), description)

    values = _values(report) | {"plots": plots, "drawn": drawn}
    page = TEMPLATES.get_template("one_class.html").render(values)
    card = TEMPLATES.get_template("MODEL_CARD_ONE_CLASS.md").render(values)
    beside = {f"report/{name}": data for name, data in plots.items()}
    predictions = {"report/predictions.csv": _predictions_csv(report)}
    return beside | predictions | {"report/index.html": page.encode(), "MODEL_CARD.md": card.encode()}


def _values(report: OneClassData) -> dict[str, Any]:
    """Return the values for both templates."""
    metrics, manifest = report.metrics, report.manifest
    return {
        "name": report.name,
        "class_name": manifest.classes[0],
        "status_page": STATUS_PAGE,
        "manifest": manifest,
        "splits": report.splits,
        "metrics": metrics,
        "novelty": metrics["novelty"],
        "test": metrics["test"]["novelty"],
        "val": metrics["val"]["novelty"],
        "served": metrics["novelty"]["measures"][manifest.measure],
        "measure_names": plot_one_class.NAMES,
        "is_few": metrics["novelty"]["photos_held_out"] < metrics["novelty"]["photos_enough"],
        "is_rough": accuracy.is_rough(*metrics["test"]["novelty"]["share_95"]),
        "outliers": report.outliers,
        "farthest": _show(report, report.splits.test, report.distances["test"], descending=True),
        "missed": _show(report, report.outliers, report.of_outliers, descending=False),
        "shows_photos": report.crops is not None,
        "training": manifest.training.get("settings", {}),
        "command": command(report.settings, report.name) if report.settings else None,
    }


def _show(report: OneClassData, photos: Sequence[Photo], distances: Floats, descending: bool) -> tuple[_Shown, ...]:
    """Return the most distant photos, or the nearest ones."""
    if report.crops is None or not photos:
        return ()
    rows: NDArray[np.intp] = np.argsort(-distances if descending else distances, kind="stable")[:_MAX_PHOTOS]
    crops = report.crops([photos[row] for row in rows])
    return tuple(
        _Shown(data_uri(crop), float(distances[row]) / report.threshold) for row, crop in zip(rows, crops, strict=True)
    )


def _predictions_csv(report: OneClassData) -> bytes:
    """Return a CSV of every test photo and outlier with its novelty; outliers have no class and no probability."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "class", "novelty", "is_novel", "probability"])
    (class_name,), threshold = report.manifest.classes, report.threshold
    assert report.probabilities is not None
    for photo, distance, probability in zip(
        report.splits.test, report.distances["test"], report.probabilities, strict=True
    ):
        shown = [f"{distance:.6f}", int(distance > threshold), f"{probability:.6f}"]
        writer.writerow([report.splits.name(photo), class_name, *shown])
    for photo, distance in zip(report.outliers, report.of_outliers, strict=True):
        name = printable("/".join(photo.path.parts[-2:]))
        writer.writerow([name, "", f"{distance:.6f}", int(distance > threshold), ""])
    return text.getvalue().encode()
