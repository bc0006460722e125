"""Labelled photos in folders: found, split once by seed, read, and checked.

The layout is ImageFolder's: one folder per class, photos anywhere below it. Photos that cannot be read are left out
and named; what else is wrong stops the run with one line.
"""

import hashlib
import os
import random
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from penult.bundle.errors import ImageError
from penult.bundle.preprocess import Preprocess, crop_encoded
from penult.export.errors import DataError
from penult.export.progress import bar
from penult.export.settings import TrainSettings

_PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# Control characters, line separators, what reverses the text after it; joiners are part of many scripts and stay.
_UNPRINTABLE = {"Cc", "Zl", "Zp", "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
# Fewer photos than this leave nothing to learn from once some are set aside.
_FEWEST_PER_CLASS = 4
# The SVM's cross-validation needs two of each class.
_FEWEST_LEARNT_FROM = 2
_NAMED = 3
# A small target lets JPEGs be checked to their last byte at an eighth of their size.
_GLANCE = Preprocess(resize=32, crop=32)


@dataclass(frozen=True)
class Photo:
    """One labelled photo: `label` indexes the classes, `sha256` (hex) is of the file's bytes."""

    path: Path
    label: int
    sha256: str = ""

    def read(self) -> bytes:
        """Return the file's bytes."""
        return self.path.read_bytes()


@dataclass(frozen=True)
class Splits:
    """The photos of one run. `notes` are lines that the user should see and the report keeps."""

    classes: tuple[str, ...]
    train: tuple[Photo, ...]
    val: tuple[Photo, ...]
    test: tuple[Photo, ...]
    notes: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of every photo's split, class and content."""
        rows = sorted(
            f"{split} {self.classes[photo.label]} {photo.sha256}"
            for split in ("train", "val", "test")
            for photo in getattr(self, split)
        )
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    def counts(self) -> dict[str, int]:
        """Return how many photos each split has."""
        return {"train": len(self.train), "val": len(self.val), "test": len(self.test)}


def load_splits(settings: TrainSettings) -> Splits:
    """Find, check and split the photos that `settings` names; raise DataError."""
    data = settings.data
    if not data.is_dir():
        raise DataError("DATA_MISSING", f"{data} is not a folder; give a folder that holds one folder per class")
    laid_out = (data / "train").is_dir()
    notes: list[str] = []
    classes, found = _find(data / "train" if laid_out else data, notes)
    parts: dict[str, list[Photo]] = {"train": _readable(found, notes)}
    for part in ("val", "test"):
        folder = _given_folder(data if laid_out else None, part, getattr(settings, part))
        if folder:
            _, photos = _find(folder, notes, classes)
            parts[part] = _readable(photos, notes)
            if not parts[part]:
                raise DataError("DATA_EMPTY", f"none of the photos in {folder} can be read; restore or remove them")
    _check_enough(classes, parts["train"])
    missing = [part for part in ("test", "val") if part not in parts]
    for later, part in zip(reversed(range(len(missing))), missing, strict=True):
        fraction = _fraction(part, getattr(settings, part))
        parts["train"], parts[part] = _hold_out(
            parts["train"], fraction, f"{settings.seed} {part}", _FEWEST_LEARNT_FROM + later
        )
        notes.append(f"no {part}/ folder: {len(parts[part])} photos set aside at random (seed {settings.seed})")
    notes.extend(_duplicates(parts))
    return Splits(classes, tuple(parts["train"]), tuple(parts["val"]), tuple(parts["test"]), tuple(notes))


def _find(root: Path, notes: list[str], classes: Sequence[str] | None = None) -> tuple[tuple[str, ...], list[Photo]]:
    """List the photos below root/CLASS; `classes` fixes the names and their order."""
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    names = tuple(classes or folders)
    if unknown := sorted(set(folders) - set(names)):
        raise DataError(
            "DATA_CLASSES", f"{root} has a class {unknown[0]!r} that the training photos lack; add or remove it"
        )
    photos, others = [], []
    for label, name in enumerate(names):
        _check_class_name(root, name)
        files = sorted(_files(root / name))
        photos += [Photo(path, label) for path in files if path.suffix.lower() in _PHOTO_SUFFIXES]
        others += [path for path in files if path.suffix.lower() not in _PHOTO_SUFFIXES]
    if others:
        notes.append(f"{len(others)} files are not JPEG, PNG or WebP and are left out: {_some(others)}")
    if not photos:
        raise DataError(
            "DATA_EMPTY", f"{root} holds no photos; it needs one folder per class with JPEG, PNG or WebP files"
        )
    return names, photos


def _files(folder: Path) -> Iterable[Path]:
    for base, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(base, name) for name in files if not name.startswith("."))


def _check_class_name(root: Path, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(
            "DATA_CLASS_NAME", f"{root} has a class folder whose name is not UTF-8: {name!r}; rename it"
        ) from None
    kinds = {unicodedata.category(letter) for letter in name} | {unicodedata.bidirectional(letter) for letter in name}
    if kinds & _UNPRINTABLE or name != name.strip():
        raise DataError("DATA_CLASS_NAME", f"{root} has a class folder with an unprintable name: {name!r}; rename it")


def _readable(photos: list[Photo], notes: list[str]) -> list[Photo]:
    """Return the photos that can be read, with their digests; note those that cannot."""
    with ThreadPoolExecutor() as threads:
        checked = list(bar(threads.map(_check, photos), "reading photos", len(photos)))
    broken = [(photo.path, problem) for photo, problem in zip(photos, checked, strict=True) if isinstance(problem, str)]
    if broken:
        notes.append(f"{len(broken)} photos cannot be read and are left out: {_some(broken)}")
    return [photo for photo in checked if isinstance(photo, Photo)]


def _check(photo: Photo) -> Photo | str:
    """Return the photo with its digest, or why it cannot be used."""
    try:
        data = photo.read()
        crop_encoded(data, _GLANCE)
    except ImageError as error:
        return error.reason
    except OSError as error:
        return error.strerror or "unreadable"
    return Photo(photo.path, photo.label, hashlib.sha256(data).hexdigest())


def _some(items: Sequence[object]) -> str:
    shown = [f"{i[0].name} ({i[1]})" if isinstance(i, tuple) else getattr(i, "name", str(i)) for i in items[:_NAMED]]
    text = ", ".join(name.encode(errors="backslashreplace").decode() for name in shown)
    return text + (f" and {len(items) - _NAMED} more" if len(items) > _NAMED else "")


def _check_enough(classes: Sequence[str], photos: Sequence[Photo]) -> None:
    if len(classes) < 2:
        raise DataError(
            "DATA_ONE_CLASS",
            f"only one class ({classes[0]!r}) was found; two or more are needed, each a folder of photos",
        )
    count = Counter(photo.label for photo in photos)
    few = [name for label, name in enumerate(classes) if count[label] < _FEWEST_PER_CLASS]
    if few:
        raise DataError(
            "DATA_FEW",
            f"class {few[0]!r} has {count[classes.index(few[0])]} readable photos; at least {_FEWEST_PER_CLASS} are "
            "needed, and some tens are better",
        )


def _given_folder(data: Path | None, part: str, option: str) -> Path | None:
    """Return the folder of a split if there is one: the option's, else DATA's own."""
    if option and Path(option).is_dir():
        return Path(option)
    if data and (data / part).is_dir():
        return data / part
    _fraction(part, option)
    return None


def _fraction(part: str, option: str) -> float:
    try:
        value = float(option)
    except ValueError:
        raise DataError("DATA_SPLIT", f"--{part} {option}: neither a folder nor a number between 0 and 1") from None
    if not 0 < value < 1:
        raise DataError("DATA_SPLIT", f"--{part} {option}: must be above 0 and below 1")
    return value


def _hold_out(photos: Sequence[Photo], fraction: float, seed: str, keep: int) -> tuple[list[Photo], list[Photo]]:
    """Set a share of every class aside: at least one photo, and so that at least `keep` stay."""
    kept, aside = [], []
    for label in sorted({photo.label for photo in photos}):
        # Ordered by content, so that the split depends on the photos and the seed, not on file names.
        group = sorted(
            (photo for photo in photos if photo.label == label), key=lambda photo: (photo.sha256, photo.path)
        )
        random.Random(f"{seed} {label}").shuffle(group)
        count = max(1, min(round(fraction * len(group)), len(group) - keep))
        aside += group[:count]
        kept += group[count:]
    return kept, aside


def _duplicates(parts: dict[str, list[Photo]]) -> list[str]:
    """Note photos that stand in more than one split byte for byte: they make the test look easier than it is."""
    seen: dict[str, set[str]] = {}
    for part, photos in parts.items():
        for photo in photos:
            seen.setdefault(photo.sha256, set()).add(part)
    shared = sum(len(where) > 1 for where in seen.values())
    return [f"{shared} photos stand in more than one split, byte for byte; remove the copies"] if shared else []
