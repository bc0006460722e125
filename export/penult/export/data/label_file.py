"""Read a file of labels: CSV, TSV, Parquet, or Label Studio's JSON export.

Each row names an image and its label, and optionally its split and its group. Every problem is one line with the row's
number, as a spreadsheet shows it.
"""

import os
import stat
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from penult.export.config.photos import PhotoSource
from penult.export.config.train import TrainSettings
from penult.export.data import label_studio, tables
from penult.export.data.file_index import File, Listing, file_of
from penult.export.data.layout import Layout, is_printable_name, nearest_class
from penult.export.data.tables import Row, failed
from penult.export.errors import DataError
from penult.folders import names
from penult.folders.names import printable
from penult.folders.walk import some

READERS = {
    ".csv": tables.read_csv,
    ".tsv": tables.read_csv,
    ".parquet": tables.read_parquet,
    ".json": label_studio.read,
}
_REMOTE = ("http://", "https://", "s3://", "gs://", "azure-blob://", "hdfs://", "data:")


@dataclass
class _Read:
    """What has been read of a label file.

    Attributes:
        files: The file of each image, and the number of its row; its label is a place in `labels`.
        labels: The first row of each label, in order.
        missing: Images that do not exist, as they are written, with their rows.
        repeated: How many rows repeat an image.
    """

    rows: int = 0
    files: dict[str, tuple[File, int]] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    missing: list[tuple[str, int]] = field(default_factory=list)
    repeated: int = 0


def is_label_file(data: Path) -> bool:
    """Return True if DATA is a label file by its name, and not a folder."""
    return data.suffix.lower() in READERS and not data.is_dir()


def root_of(source: PhotoSource) -> Path:
    """Return the folder that the paths of a label file start from; raise DataError if it is none."""
    if source.images is None:
        return source.data.parent
    if not source.images.is_dir():
        raise DataError(
            "DATA_MISSING", f"--images {printable(str(source.images))} is not a folder; give the images' folder"
        )
    return source.images


def read_label_file(source: PhotoSource, val: str, test: str) -> tuple[Layout, Listing]:
    """Read a label file and find its images; their bytes are not read.

    Args:
        source: The label file, and the folder of its images.
        val: The fraction of validation photos to set aside, if the file names none.
        test: The fraction of test photos to set aside, if the file names none.

    Returns:
        The classes and splits, and the files in order of class and path. `problems` list what else is wrong.

    Raises:
        DataError: A row cannot be used; the message names it.
    """
    path, root = source.data, root_of(source)
    if not path.is_file():
        raise DataError("DATA_MISSING", f"{printable(str(path))} does not exist; give a label file or a folder")
    found = _read(path, root)
    layout = Layout(root)
    if found.missing:
        _report_missing(source, root, found, layout)
    if not found.rows:
        raise failed(path, "has no rows", "list one image per row, below a row image,label")
    given = {file.split for file, _ in found.files.values()}
    labels = list(found.labels)
    training = {labels[place] for place in {file.label for file, _ in found.files.values() if file.split == "train"}}
    only_elsewhere = [label for label in labels if label not in training]
    if only_elsewhere and training:
        _refuse_unlearnt(path, found, given, only_elsewhere, training)
    layout.classes = tuple(sorted(found.labels))
    _take_fractions(layout, given, {"test": test, "val": val})
    if found.repeated:
        layout.notes.append(f"{found.repeated} rows repeat an image of another row; each image counts once")
    places = [layout.classes.index(label) for label in labels]
    files = []
    while found.files:  # frees each entry: of a million, two copies would be half a gigabyte
        _, (file, _) = found.files.popitem()
        files.append(file._replace(label=places[file.label]))
    # As walk() orders them: the names of each folder before longer ones that begin with it.
    files.sort(key=lambda file: (file.label, file.path.replace("/", "\0")))
    return layout, Listing(root, files)


def _read(path: Path, root: Path) -> _Read:
    found, places = _Read(), dict[str, int]()
    for row in checked_rows(path):
        found.rows += 1
        found.labels.setdefault(row.label, row.number)
        file = _find(path, root, row, places.setdefault(row.label, len(places)))
        if file is None:
            found.missing.append((row.image, row.number))
        elif file.path in found.files:
            before, number = found.files[file.path]
            _check_repeated(path, row, list(places)[before.label], before.split, number)
            found.repeated += 1
        else:
            found.files[file.path] = file, row.number
    return found


def checked_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a label file, with labels in NFC and splits as penult names them; raise DataError."""
    for row in READERS[path.suffix.lower()](path):
        yield _checked(path, row)


def _checked(path: Path, row: Row) -> Row:
    """Return a row with its label in NFC, and its split as "train", "val" or "test"; raise DataError."""
    label = unicodedata.normalize("NFC", row.label)
    if not label:
        raise failed(path, "no label", "add one, or remove the row", row.number)
    if not is_printable_name(label):
        raise failed(path, f"the label {label!r} is unprintable", "correct it", row.number)
    split = names.split_of(row.split) if row.split else "train"
    if split is None:
        raise failed(path, f"the split {row.split!r} is not train, val or test", "correct it", row.number)
    return row._replace(label=label, split=split)


def _find(path: Path, root: Path, row: Row, label: int) -> File | None:
    """Return the file of a row; None if it does not exist. Raises DataError for what cannot be a file."""
    if not row.image:
        raise failed(path, "no image", "add its path, or remove the row", row.number)
    if row.image.startswith(_REMOTE):
        raise failed(
            path,
            f"{printable(row.image[:60])} is not on this machine",
            "download the image and give its path",
            row.number,
        )
    if "\0" in row.image:
        raise failed(path, f"the path {row.image[:60]!r} is unprintable", "correct it", row.number)
    for spelt in dict.fromkeys(spellings(row)):
        try:
            status = os.stat(os.path.join(root, spelt))
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(status.st_mode):
            return file_of(label, spelt, status, row.split, sys.intern(row.group))
        if row.image == spelt:
            raise failed(path, f"{printable(spelt)} is no file", "give an image", row.number)
    return None


def spellings(row: Row) -> Iterator[str]:
    """Yield the paths that a row may mean: as written, as other systems write it, as an upload was renamed."""
    yield os.path.normpath(row.image)
    slashed = row.image.replace("\\", "/")
    for form in ("NFC", "NFD"):
        yield os.path.normpath(unicodedata.normalize(form, slashed))
    yield from row.elsewhere


def _check_repeated(path: Path, row: Row, label: str, split: str, number: int) -> None:
    for what, now, then in (("labels", row.label, label), ("splits", row.split, split)):
        if now != then:
            raise failed(
                path, f"{printable(row.image)} has two {what}, {now!r} and {then!r} (row {number})",
                "keep the correct row", row.number,
            )  # fmt: skip


def _report_missing(source: PhotoSource, root: Path, found: _Read, layout: Layout) -> None:
    """Add a note on images that do not exist; raise DataError unless these are to be left out."""
    image, number = found.missing[0]
    many = len(found.missing)
    if source.skip_missing:
        named = some([printable(each) for each, _ in found.missing])
        layout.notes.append(f"{many} images of the label file do not exist and are left out: {named}")
        if found.files:
            return
    if not found.files:
        raise failed(
            source.data, f"none of the {many} images exists in {printable(str(root))}, such as {printable(image)}",
            "give the folder that the paths start from with --images ROOT", number,
        )  # fmt: skip
    others = f", and {many - 1} more do not exist" if many > 1 else ""
    raise failed(
        source.data, f"{printable(image)} does not exist in {printable(str(root))}{others}",
        "restore it, or leave out such images with --skip-missing", number,
    )  # fmt: skip


def _refuse_unlearnt(path: Path, found: _Read, given: set[str], labels: list[str], training: set[str]) -> None:
    """Raise DataError for labels that have validation or test images only, or no image that exists."""
    named = [f"{label!r} (row {found.labels[label]}{nearest_class(label, sorted(training))})" for label in labels]
    where = "training images" if given - {"train"} else "images"
    raise failed(path, f"has labels without {where}: {some(named)}", "add some, or remove the rows")


def _take_fractions(layout: Layout, given: set[str], options: dict[str, str]) -> None:
    """Read the fractions of the splits that no row names."""
    if "train" not in given:
        layout.add("DATA_LAYOUT", "the label file names no training images; add rows whose split is train")
    for part, option in options.items():
        if Path(option).is_dir():
            layout.add(
                "DATA_SPLIT",
                f"--{part} {printable(option)} is a folder, which a label file does not go with; add a column split",
            )
        elif part in given:
            if option != getattr(TrainSettings, part):
                layout.notes.append(f"--{part} {option} is not used: the label file names the {part} split")
        else:
            layout.take_fraction(part, option)
