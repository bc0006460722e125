"""Labels from other files, and to Label Studio and back."""

import json
import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from penult.export.data import label_studio
from penult.export.data.label_file import READERS, checked_rows, spellings
from penult.export.data.tables import COLUMNS, IMAGE, LABEL, Row
from penult.export.errors import DataError
from penult.folders.names import printable
from penult.folders.walk import some
from penult.label.errors import LabelFileError
from penult.label.label_paths import LabelPaths, readable
from penult.label.label_table import Table
from penult.label.labels_file import Label, LabelsFile

_SUFFIXES = ", ".join(READERS)


@dataclass
class Imported:
    """The labels that a file has for images of a folder.

    Attributes:
        labels: Label of each image.
        splits: train, val or test of each image.
        missing: Images of the file that are not in the folder, as they are written.
        ambiguous: Images of which several files in the folder have the name.
    """

    labels: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)


def read_labels(path: Path, root: Path, ids: Collection[str]) -> Imported:
    """Read the labels of any file that `penult train` reads, for images of a folder.

    Paths may start from the folder or from the file's own. For an export of Label Studio the image is also found by the
    end of its path, if one image of the folder has it.

    Args:
        path: CSV, TSV, Parquet, or a JSON export of Label Studio.
        root: The folder.
        ids: Its images, paths below it with "/".

    Raises:
        LabelFileError: The file cannot be read, or gives one image two labels.
    """
    name = printable(str(path))
    if path.suffix.lower() not in READERS or not path.is_file():
        raise LabelFileError("LABEL_FILE", f"{name} is no label file; give a file that ends in {_SUFFIXES}")
    try:
        rows = list(checked_rows(path))
    except DataError as error:
        raise LabelFileError("LABEL_FILE", error.message) from error
    images = _Images(path, root, ids, rows)
    found = Imported()
    for row in rows:
        image = images.find(row)
        if image is None:
            (found.ambiguous if images.is_ambiguous(row) else found.missing).append(row.image)
            continue
        found.splits[image] = row.split
        if found.labels.setdefault(image, row.label) != row.label:
            both = f"{found.labels[image]!r} and {row.label!r}"
            raise LabelFileError(
                "LABEL_FILE", f"{name}, row {row.number}: {printable(row.image)} has two labels, {both}; keep one"
            )
    return found


class _Images:
    """The images of a folder, to be found by what a label file calls them."""

    def __init__(self, path: Path, root: Path, ids: Collection[str], rows: Sequence[Row]) -> None:
        self._ids = frozenset(ids)
        self._paths = LabelPaths(root, path.parent, [row.image for row in rows])
        self._is_export = path.suffix.lower() == ".json"
        self._named: dict[str, list[str]] = defaultdict(list)
        if self._is_export:
            for image in ids:
                self._named[image.rpartition("/")[2]].append(image)

    def find(self, row: Row) -> str | None:
        for spelt in spellings(row):
            if spelt in self._ids:
                return spelt
            image = self._paths.id_of(spelt)
            if image in self._ids:
                return image
        ends = self._ends(row)
        return ends[0] if len(ends) == 1 else None

    def is_ambiguous(self, row: Row) -> bool:
        return len(self._ends(row)) > 1

    def _ends(self, row: Row) -> list[str]:
        """Return the images that share the longest end of their path with an export's task, if at least the name."""
        if not self._is_export:
            return []
        for spelt in spellings(row):
            named = self._named.get(spelt.rpartition("/")[2], [])
            lengths = [_common_end(spelt, image) for image in named]
            if lengths:
                return [image for image, length in zip(named, lengths, strict=True) if length == max(lengths)]
        return []


def _common_end(one: str, other: str) -> int:
    """Return how many parts at the end of two paths are equal."""
    pairs = zip(reversed(one.split("/")), reversed(other.split("/")), strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(one.count("/"), other.count("/")) + 1)


def import_labels(file: LabelsFile, path: Path, root: Path, ids: Collection[str]) -> list[str]:
    """Add the labels of another file; images that have one keep it.

    Args:
        file: The label file that is open.
        path: What read_labels() reads.
        root: The labelled folder.
        ids: Its images.

    Returns:
        What was added and what was not, a line each.

    Raises:
        LabelFileError: The other file cannot be read, or the label file not be written.
    """
    found = read_labels(path, root, ids)
    others = [
        image for image, label in found.labels.items() if image in file.labels and file.labels[image].label != label
    ]
    new = [Label(image, label) for image, label in found.labels.items() if image not in file.labels]
    file.put(new)
    notes = [f"{len(new)} labels of {printable(path.name)} were added"]
    for images, what in (
        (others, "have another label in the label file, which stays"),
        (found.missing, "are not in the folder"),
        (found.ambiguous, "have a name that several images of the folder have"),
    ):
        if images:
            notes.append(
                f"{len(images)} images of {printable(path.name)} {what}: {some([printable(i) for i in images])}"
            )
    return notes


def rows_for_training(file: LabelsFile) -> bytes:
    """Return the labels as a CSV file for `penult train FILE --images FOLDER`, whatever the label file is written like.

    Its paths start from the labelled folder. It has the columns split and group if the label file has.
    """
    table = Table("utf-8", b"", ",", "\n", list(COLUMNS), ",".join(COLUMNS) + "\n")
    rows = [
        table.row({**file.others(image), IMAGE: readable(image), LABEL: label.label})
        for image, label in dict(file.labels).items()
    ]
    return table.data({}, rows)


def label_studio_tasks(
    file: LabelsFile, root: Path, ids: Sequence[str], guesses: Mapping[str, tuple[str, float]], model: str
) -> bytes:
    """Return the tasks of a Label Studio project as JSON: annotations of labelled images, predictions for the others.

    Label Studio finds the images as local files, with the folder above the labelled one as document root.

    Args:
        file: The label file.
        root: The labelled folder.
        ids: Its images, in the order of the tasks.
        guesses: Label and probability of images that the model has guessed.
        model: What made the guesses.
    """
    folder = os.path.basename(os.path.abspath(root))
    tasks = []
    for image in ids:
        label = file.labels.get(image)
        guess = None if label else guesses.get(image)
        others = file.others(image) if label else {}
        tasks.append(label_studio.task(f"{folder}/{image}", label.label if label else None, guess, model, others))
    return json.dumps(tasks, ensure_ascii=False, indent=1).encode() + b"\n"


def label_studio_config(classes: Sequence[str]) -> str:
    """Return the labelling interface for the project that the tasks are imported into, as XML."""
    return label_studio.config(classes)
