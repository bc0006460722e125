"""Labelled photos in folders: found, checked, and split once by seed.

The layout is ImageFolder's: one folder per class, photos anywhere below it. Photos that cannot be read are left out
and named; what else is wrong stops the run with one line.
"""

import hashlib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from penult.bundle.guards import DEFAULT_LIMITS
from penult.export import index
from penult.export.errors import DataError, DiskError
from penult.export.settings import TrainSettings

# Control characters, line separators, what reverses the text after it; joiners are part of many scripts and stay.
_UNPRINTABLE = {"Cc", "Zl", "Zp", "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
# Fewer different photos than this leave nothing to learn from once some are set aside.
FEWEST_PER_CLASS = 4
# The SVM's cross-validation needs two of each class.
_FEWEST_LEARNT_FROM = 2
_NAMED = 3
_SEVERAL = -1
PARTS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Photo:
    """One labelled photo: `label` indexes the classes, `sha256` (hex) is of the file's bytes."""

    path: Path
    label: int
    sha256: str = ""

    def read(self) -> bytes:
        """Return the file's bytes; raise DiskError where it has gone since it was found."""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise DiskError(
                "PHOTO_GONE", f"photo {self.path} cannot be read any more: {error.strerror or error}; restore it"
            ) from error


@dataclass(frozen=True)
class Splits:
    """The photos of one run.

    `notes` are lines that the user should see and the report keeps. They name a few files; all of them stand in
    `left_out` (file, why it cannot be read) and `copies` (files that are alike byte for byte, where they stand in
    more than one split or under more than one label). Files are named relative to DATA where they lie below it.
    """

    classes: tuple[str, ...]
    train: tuple[Photo, ...]
    val: tuple[Photo, ...]
    test: tuple[Photo, ...]
    notes: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    copies: tuple[tuple[str, ...], ...] = ()

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of every photo's split, class and content."""
        rows = sorted(
            f"{split} {self.classes[photo.label]} {photo.sha256}" for split in PARTS for photo in getattr(self, split)
        )
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    def counts(self) -> dict[str, int]:
        """Return how many photos each split has."""
        return {part: len(getattr(self, part)) for part in PARTS}


def load_splits(settings: TrainSettings) -> Splits:
    """Find, check and split the photos that `settings` names; raise DataError."""
    folders, fractions = _sources(settings)
    classes = tuple(_class_folders(folders["train"]))
    listings = {part: _list(folder, classes) for part, folder in folders.items()}
    if len(classes) < 2:
        raise DataError(
            "DATA_ONE_CLASS",
            f"only one class ({classes[0]!r}) was found; two or more are needed, each a folder of photos",
        )
    notes: list[str] = []
    left_out: list[tuple[str, str]] = []
    parts = {part: _readable(settings.data, listing, notes, left_out) for part, listing in listings.items()}
    _check_enough(classes, parts["train"], left_out)
    for later, part in zip(reversed(range(len(fractions))), fractions, strict=True):
        parts["train"], parts[part] = hold_out(
            parts["train"], fractions[part], f"{settings.seed} {part}", _FEWEST_LEARNT_FROM + later
        )
        notes.append(f"no {part}/ folder: {len(parts[part])} photos set aside at random (seed {settings.seed})")
    _note_absent(classes, parts, notes)
    copies = _copies(settings.data, parts, notes)
    train, val, test = (tuple(parts[part]) for part in PARTS)
    return Splits(classes, train, val, test, tuple(notes), tuple(left_out), tuple(copies))


def _sources(settings: TrainSettings) -> tuple[dict[str, Path], dict[str, float]]:
    """Return the folders of the parts that have one, and the fractions of those that are drawn, the test first."""
    data = settings.data
    if not data.is_dir():
        raise DataError("DATA_MISSING", f"{data} is not a folder; give a folder that holds one folder per class")
    laid_out = (data / "train").is_dir()
    folders = {"train": data / "train" if laid_out else data}
    fractions = {}
    for part in ("test", "val"):
        option = getattr(settings, part)
        if option and Path(option).is_dir():
            folders[part] = Path(option)
        elif laid_out and (data / part).is_dir():
            folders[part] = data / part
        else:
            fractions[part] = _fraction(part, option)
    _check_apart(settings.out, folders)
    return {part: folders[part] for part in PARTS if part in folders}, fractions


def _check_apart(out: Path, folders: Mapping[str, Path]) -> None:
    """Refuse folders that would be taken for a class of the photos among which they lie."""
    root = folders["train"].resolve()
    for option, folder in (("--out", out), ("--val", folders.get("val")), ("--test", folders.get("test"))):
        if folder and folder.resolve().is_relative_to(root):
            raise DataError(
                "DATA_INSIDE",
                f"{option} {folder} lies among the photos of {folders['train']}, where it would be taken for a class; "
                "give a folder outside of it",
            )


def _fraction(part: str, option: str) -> float:
    try:
        value = float(option)
    except ValueError:
        raise DataError("DATA_SPLIT", f"--{part} {option}: neither a folder nor a number between 0 and 1") from None
    if not 0 < value < 1:
        raise DataError("DATA_SPLIT", f"--{part} {option}: must be above 0 and below 1")
    return value


def _class_folders(root: Path) -> list[str]:
    with os.scandir(root) as scan:
        return sorted(entry.name for entry in scan if not entry.name.startswith(".") and Path(entry.path).is_dir())


def _list(root: Path, classes: Sequence[str]) -> index.Listing:
    """List the photos below root/CLASS; raise DataError where a class is unknown or there is no photo at all."""
    if unknown := sorted(set(_class_folders(root)) - set(classes)):
        raise DataError(
            "DATA_CLASSES", f"{root} has a class {unknown[0]!r} that the training photos lack; add or remove it"
        )
    for name in classes:
        _check_class_name(root, name)
    listing = index.find(root, classes)
    if not listing.files and not listing.broken:
        raise DataError(
            "DATA_EMPTY", f"{root} holds no photos; it needs one folder per class with JPEG, PNG or WebP files"
        )
    return listing


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


def _readable(data: Path, listing: index.Listing, notes: list[str], left_out: list[tuple[str, str]]) -> list[Photo]:
    """Return the photos that can be read, with their digests; note and collect what is left out."""
    photos, broken = [], list(listing.broken)
    for file, answer in zip(listing.files, index.check(listing), strict=True):
        if index.is_digest(answer):
            photos.append(Photo(Path(os.path.join(listing.root, file.path)), file.label, answer))
        else:
            broken.append((file.path, answer))
    others = [_name(data, listing.root / path) for path in listing.others]
    named = [(_name(data, listing.root / path), why) for path, why in sorted(broken)]
    closed = [(_name(data, listing.root / path), why) for path, why in listing.closed]
    if not photos:
        raise DataError(
            "DATA_EMPTY", f"none of the photos in {listing.root} can be read; restore or remove them: {_some(named)}"
        )
    if others:
        notes.append(f"{len(others)} files are not JPEG, PNG or WebP and are left out: {_some(others)}")
    if closed:
        notes.append(f"{len(closed)} folders cannot be entered and are left out: {_some(closed)}")
    if named:
        notes.append(f"{len(named)} photos cannot be read and are left out; restore or remove them: {_some(named)}")
    _note_large(named, notes)
    left_out += [*closed, *named]
    return photos


def _note_large(named: Iterable[tuple[str, str]], notes: list[str]) -> None:
    """Note photos that are larger than training and the service take."""
    if large := [entry for entry in named if entry[1] in ("IMAGE_TOO_MANY_BYTES", "IMAGE_TOO_MANY_PIXELS")]:
        notes.append(
            f"{len(large)} of these have more than the {DEFAULT_LIMITS} that training and penult serve take; make them "
            f"smaller: {_some(large)}"
        )


def _check_enough(classes: Sequence[str], photos: Sequence[Photo], left_out: Sequence[tuple[str, str]]) -> None:
    """Refuse classes with too few photos that differ and that no other class has too."""
    readable = Counter(photo.label for photo in photos)
    own = Counter(_owners(photos).values())
    for label, name in enumerate(classes):
        if own[label] < FEWEST_PER_CLASS:
            different = f", only {own[label]} different ones of its own" if own[label] < readable[label] else ""
            unread = [entry for entry in left_out if name in entry[0].split("/")[:-1]]
            different += f" and {len(unread)} that cannot be read, {_some(unread)}" if unread else ""
            raise DataError(
                "DATA_FEW",
                f"class {name!r} has {readable[label]} readable photos{different}; at least {FEWEST_PER_CLASS} are "
                "needed, and some tens are better",
            )


def _note_absent(classes: Sequence[str], parts: Mapping[str, Sequence[Photo]], notes: list[str]) -> None:
    """Note the classes of which nothing can be said, where a given folder lacks them."""
    for part in ("val", "test"):
        present = {photo.label for photo in parts[part]}
        if absent := [name for label, name in enumerate(classes) if label not in present]:
            notes.append(f"no {part} photo of {len(absent)} classes, so nothing is measured of them: {_some(absent)}")


def _owners(photos: Iterable[Photo]) -> dict[str, int]:
    """Return the label of each content, or _SEVERAL."""
    owners: dict[str, int] = {}
    for photo in photos:
        owners[photo.sha256] = photo.label if owners.get(photo.sha256, photo.label) == photo.label else _SEVERAL
    return owners


def hold_out(photos: Sequence[Photo], fraction: float, seed: str, keep: int) -> tuple[list[Photo], list[Photo]]:
    """Set a share of every class aside: at least one photo, and so that at least `keep` different ones stay.

    Copies of one photo stay together. A photo that stands under several labels is never set aside: nobody could be
    right about it. A photo's place in the order depends on its content and the seed alone: with more photos or classes,
    hardly one that was learnt from before is set aside, and a network that knows them is not tested on them.
    """
    owners = _owners(photos)
    kept, aside = [], []
    ordered = sorted(photos, key=lambda photo: (photo.label, _place(photo, seed), photo.sha256, photo.path))
    for label, in_order in groupby(ordered, key=lambda photo: photo.label):
        of_class = list(in_order)
        own = [photo for photo in of_class if owners[photo.sha256] == label]
        groups = [list(copies) for _, copies in groupby(own, key=lambda photo: photo.sha256)]
        out, rest = _divide(groups, max(1, round(fraction * len(of_class))), len(groups) - keep)
        aside += out
        kept += rest + [photo for photo in of_class if owners[photo.sha256] == _SEVERAL]
    return kept, aside


def _place(photo: Photo, seed: str) -> bytes:
    return hashlib.sha256(f"{seed} {photo.sha256}".encode()).digest()


def _divide(groups: Sequence[list[Photo]], wanted: int, most: int) -> tuple[list[Photo], list[Photo]]:
    """Take groups in order as long as they fit into `wanted` photos, `most` groups; the smallest if none fits."""
    if all(len(group) > wanted for group in groups):
        wanted = min(map(len, groups))
    taken: list[Photo] = []
    rest: list[Photo] = []
    for group in groups:
        fits = most > 0 and len(taken) + len(group) <= wanted
        (taken if fits else rest).extend(group)
        most -= fits
    return taken, rest


def _copies(data: Path, parts: Mapping[str, Sequence[Photo]], notes: list[str]) -> list[tuple[str, ...]]:
    """Note photos that are alike byte for byte, and return the names of those that do harm.

    In two splits they make the test look easier than it is; under two labels one of them teaches a mistake.
    """
    count = Counter(photo.sha256 for photos in parts.values() for photo in photos)
    alike: dict[str, list[tuple[str, Photo]]] = defaultdict(list)
    for part in reversed(PARTS):
        for photo in parts[part]:
            if count[photo.sha256] > 1:
                alike[photo.sha256].append((part, photo))
    across, conflicts, extra = [], [], 0
    for group in alike.values():
        names = tuple(_name(data, photo.path) for _, photo in group)
        across += [names] * (len({part for part, _ in group}) > 1)
        conflicts += [names] * (len({photo.label for _, photo in group}) > 1)
        extra += len(group) - len({(part, photo.label) for part, photo in group})
    if across:
        some = _some([" = ".join(names) for names in sorted(across)])
        notes.append(f"{len(across)} photos stand in more than one split, byte for byte; remove the copies: {some}")
    if conflicts:
        some = _some([" = ".join(names) for names in sorted(conflicts)])
        notes.append(f"{len(conflicts)} photos have more than one label; keep the file whose label is right: {some}")
    if extra:
        notes.append(f"{extra} photos are copies of another one in the same split and class; each counts")
    return sorted({*across, *conflicts})


def _name(data: Path, path: Path) -> str:
    """Return a file's name for people: printable, relative to DATA, and with no folder above the split's."""
    text = str(path.relative_to(data)) if path.is_relative_to(data) else "/".join(path.parts[-3:])
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _some(items: Sequence[str] | Sequence[tuple[str, str]]) -> str:
    """Return the first few, with the reason where there is one, and how many more there are."""
    shown = [item if isinstance(item, str) else f"{item[0]} ({item[1]})" for item in items[:_NAMED]]
    return ", ".join(shown) + (f" and {len(items) - _NAMED} more" if len(items) > _NAMED else "")
