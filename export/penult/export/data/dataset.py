"""Find labelled photos in folders, check them, and split them by seed.

As for torchvision's ImageFolder, each class has a folder, with photos at any depth below it. Photos that cannot be read
are left out and named. All other problems stop the run with one line. This module must not import PyTorch.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from penult.bundle.guards import DEFAULT_LIMITS
from penult.export.config.train import TrainSettings
from penult.export.data import file_index
from penult.export.data.layout import Layout, Problem, find_layout, meant_below, refuse
from penult.export.data.split_folders import PARTS
from penult.export.errors import DiskError
from penult.folders.names import PHOTOS, printable
from penult.folders.walk import LeftOut, some, walk

# With fewer different photos, none are left for training once some are set aside.
MIN_PER_CLASS = 4
# The SVM's cross-validation needs two photos of each class.
_MIN_TRAINING = 2
# At most so many photos of a rejected folder are read, to name the broken ones too within a second.
_SOON_READ = 500
_SEVERAL = -1


@dataclass(frozen=True, slots=True)
class Photo:
    """One labelled photo: `label` indexes the classes, `sha256` (hex) is of the file's bytes."""

    path: Path
    label: int
    sha256: str = ""

    def read(self) -> bytes:
        """Return the file's bytes; raise DiskError if it cannot be read."""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise DiskError(
                "PHOTO_GONE", f"photo {self.path} can no longer be read: {error.strerror or error}; restore it"
            ) from error


@dataclass(frozen=True)
class Splits:
    """The photos of one run.

    Attributes:
        notes: Lines for the user, kept in the report. Each names a few files.
        left_out: Every file that cannot be read, with the reason.
        copies: Groups of identical files in more than one split or with more than one label.
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


def load_splits(data: Path, out: Path, val: str, test: str, seed: int) -> Splits:
    """Find, check and split the photos of a folder.

    Args:
        data: The folder DATA.
        out: The model's folder, which must not lie among the photos.
        val: A folder of validation photos, or the fraction to set aside.
        test: A folder of test photos, or the fraction to set aside.
        seed: Decides which photos are set aside.

    Raises:
        DataError: The photos cannot be used; the message names all problems.
    """
    layout = find_layout(data, out, val, test)
    _has_name_problems(layout)
    return _load(layout, seed)


def check_folders(data: Path, out: Path, val: str | None = None, test: str | None = None) -> None:
    """Raise the DataError of load_splits() if names alone show that the photos cannot be used.

    This is fast for any number of photos. If there are few, they are read too, so that one message names all problems.
    """
    layout = find_layout(data, out, val or TrainSettings.val, test or TrainSettings.test)
    if _has_name_problems(layout):
        _load(layout, seed=0)


def _load(layout: Layout, seed: int) -> Splits:
    """Read the photos, and split them; raise DataError."""
    listings = {
        part: file_index.find(folder, layout.labels[part], layout.left_out[part])
        for part, folder in layout.folders.items()
    }
    notes: list[str] = list(layout.notes)
    left_out: list[tuple[str, str]] = []
    problems = list(layout.problems)
    parts = {part: _readable(layout.data, listing, notes, left_out, problems) for part, listing in listings.items()}
    if parts["train"]:
        problems += _class_problems(layout, _too_few(layout, parts["train"], listings["train"]))
    refuse(problems and problems + _hints(layout, listings["train"].left_out))
    for later, part in zip(reversed(range(len(layout.fractions))), layout.fractions, strict=True):
        parts["train"], parts[part] = hold_out(
            parts["train"], layout.fractions[part], f"{seed} {part}", _MIN_TRAINING + later
        )
        notes.append(
            f"{part} split: {len(parts[part])} photos set aside at random (seed {seed}), as no folder has them"
        )
    _note_absent(layout.classes, parts, notes)
    copies = _copies(layout.data, parts, notes)
    train, val, test = (tuple(parts[part]) for part in PARTS)
    return Splits(layout.classes, train, val, test, tuple(notes), tuple(left_out), tuple(copies))


def _has_name_problems(layout: Layout) -> bool:
    """Return True if names alone show a problem; raise DataError at once if reading would take long."""
    problems, met = list(layout.problems), LeftOut()
    for part, folder in layout.folders.items():
        counts = _quick_counts(folder, layout.labels[part], len(layout.classes), met if part == "train" else LeftOut())
        if not sum(counts):
            problems.append(_empty(folder))
        elif part == "train":
            few = {label: f"{n} photos" for label, n in enumerate(counts) if n < MIN_PER_CLASS}
            problems += _class_problems(layout, few)
    files = (
        entry for part, folder in layout.folders.items() for name in layout.labels[part] for entry in walk(folder, name)
    )
    if problems and len(list(islice(files, _SOON_READ + 1))) > _SOON_READ:
        refuse(problems + _hints(layout, met))
    return bool(problems)


def _quick_counts(folder: Path, labels: Mapping[str, int], classes: int, met: LeftOut) -> list[int]:
    """Return how many files of each class have a photo's name, counted up to MIN_PER_CLASS per folder."""
    counts = [0] * classes
    for name, label in labels.items():
        counts[label] += sum(1 for _ in islice(walk(folder, name, met), MIN_PER_CLASS))
    return counts


def _empty(folder: Path) -> Problem:
    return Problem(
        "DATA_EMPTY", f"{printable(str(folder))} has no photos; it needs one folder per class with {PHOTOS} files"
    )


def _class_problems(layout: Layout, few: Mapping[int, str]) -> list[Problem]:
    """Return a problem for each of: fewer than two classes, too few photos of some class."""
    problems = []
    if len(layout.classes) < 2:
        line = f"only one class ({layout.classes[0]!r}) was found; at least two are needed, each a folder of photos"
        problems.append(Problem("DATA_ONE_CLASS", line))
    named = [f"{layout.classes[label]!r} has {text}" for label, text in few.items()]
    needed = f"at least {MIN_PER_CLASS} are needed, some tens are better"
    if len(named) == 1:
        problems.append(Problem("DATA_FEW", f"class {named[0]}; {needed}"))
    elif named:
        problems.append(Problem("DATA_FEW", f"{len(named)} classes have too few photos: {some(named)}; {needed}"))
    return problems


def _hints(layout: Layout, left_out: LeftOut) -> list[Problem]:
    """Return possible causes: files that must be converted, class folders that hold class folders."""
    lines = [*left_out.convertible(), meant_below(layout)]
    return [Problem("", line) for line in lines if line]


def _readable(
    data: Path, listing: file_index.Listing, notes: list[str], left_out: list[tuple[str, str]], problems: list[Problem]
) -> list[Photo]:
    """Return the readable photos with their digests; add the others to `notes`, `left_out` and `problems`."""
    photos, broken = [], list(listing.broken)
    for file, answer in zip(listing.files, file_index.check(listing), strict=True):
        if file_index.is_digest(answer):
            photos.append(Photo(Path(os.path.join(listing.root, file.path)), file.label, answer))
        else:
            broken.append((file.path, answer))
    named = [(_name(data, listing.root / path), why) for path, why in sorted(broken)]
    listing.unread += sorted(broken)
    closed = [(_name(data, listing.root / path), why) for path, why in listing.left_out.closed]
    if not photos:
        reason = (
            f"none of the photos in {printable(str(listing.root))} can be read; restore or remove them: {_some(named)}"
        )
        problems.append(Problem("DATA_EMPTY", reason) if named else _empty(listing.root))
    notes += listing.left_out.lines(lambda path: _name(data, listing.root / path), with_broken=False)
    if named:
        notes.append(f"{len(named)} photos cannot be read and are left out; restore or remove them: {_some(named)}")
    _note_large(named, notes)
    left_out += [*closed, *named]
    return photos


def _note_large(named: Iterable[tuple[str, str]], notes: list[str]) -> None:
    """Add a note on photos above the size limits of training and the service."""
    if large := [entry for entry in named if entry[1] in ("IMAGE_TOO_MANY_BYTES", "IMAGE_TOO_MANY_PIXELS")]:
        notes.append(
            f"{len(large)} of these exceed the limits of training and penult serve ({DEFAULT_LIMITS}); make them "
            f"smaller: {_some(large)}"
        )


def _too_few(layout: Layout, photos: Sequence[Photo], listing: file_index.Listing) -> dict[int, str]:
    """Return the classes with too few different photos of their own, each with a text on what it has."""
    readable = Counter(photo.label for photo in photos)
    own = Counter(_owners(photos).values())
    unread: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for path, why in listing.unread:
        unread[layout.labels["train"][path.partition("/")[0]]].append((_name(layout.data, listing.root / path), why))
    few = {}
    for label in range(len(layout.classes)):
        if own[label] < MIN_PER_CLASS:
            different = f", only {own[label]} different ones of its own" if own[label] < readable[label] else ""
            broken = f" and {len(unread[label])} that cannot be read, {_some(unread[label])}" if unread[label] else ""
            few[label] = f"{readable[label]} readable photos{different}{broken}"
    return few


def _note_absent(classes: Sequence[str], parts: Mapping[str, Sequence[Photo]], notes: list[str]) -> None:
    """Add a note on the classes that a validation or test folder lacks."""
    for part in ("val", "test"):
        present = {photo.label for photo in parts[part]}
        if absent := [name for label, name in enumerate(classes) if label not in present]:
            notes.append(f"{len(absent)} classes have no {part} photo, so they are not measured: {_some(absent)}")


def _owners(photos: Iterable[Photo]) -> dict[str, int]:
    """Return the label of each content by its SHA-256; _SEVERAL if photos disagree."""
    owners: dict[str, int] = {}
    for photo in photos:
        owners[photo.sha256] = photo.label if owners.get(photo.sha256, photo.label) == photo.label else _SEVERAL
    return owners


def hold_out(photos: Sequence[Photo], fraction: float, seed: str, keep: int) -> tuple[list[Photo], list[Photo]]:
    """Set a share of every class aside.

    At least one photo of each class is set aside, and at least `keep` different ones stay. Copies of one photo stay
    together. A photo with several labels is never set aside, because no answer to it is correct. The order depends on
    contents and seed alone. So when photos are added, hardly any former training photo becomes a test photo.

    Returns:
        The photos that stay, and those set aside.
    """
    owners = _owners(photos)
    kept, aside = [], []
    drawn = {photo.sha256: hashlib.sha256(f"{seed} {photo.sha256}".encode()).digest() for photo in photos}
    ordered = sorted(photos, key=lambda photo: (photo.label, drawn[photo.sha256], photo.sha256, photo.path))
    for label, in_order in groupby(ordered, key=lambda photo: photo.label):
        of_class = list(in_order)
        own = [photo for photo in of_class if owners[photo.sha256] == label]
        groups = [list(copies) for _, copies in groupby(own, key=lambda photo: photo.sha256)]
        out, rest = _divide(groups, max(1, round(fraction * len(of_class))), len(groups) - keep)
        aside += out
        kept += rest + [photo for photo in of_class if owners[photo.sha256] == _SEVERAL]
    return kept, aside


def _divide(groups: Sequence[list[Photo]], wanted: int, most: int) -> tuple[list[Photo], list[Photo]]:
    """Take groups in order while they fit into `wanted` photos and `most` groups; the smallest if none fits."""
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
    """Add notes on identical photos; return the names of those in two splits or with two labels.

    Copies in two splits make accuracy too high. Of copies with two labels at least one is wrong.
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
        notes.append(f"{len(across)} photos are in more than one split, byte for byte; remove the copies: {some}")
    if conflicts:
        some = _some([" = ".join(names) for names in sorted(conflicts)])
        notes.append(f"{len(conflicts)} photos have more than one label; keep the file with the correct label: {some}")
    if extra:
        notes.append(f"{extra} photos are copies of another one in the same split and class; each of them counts")
    return sorted({*across, *conflicts})


def _name(data: Path, path: Path) -> str:
    """Return a printable name of a file, relative to DATA, or its last three parts if it is elsewhere."""
    return printable(str(path.relative_to(data)) if path.is_relative_to(data) else "/".join(path.parts[-3:]))


def _some(items: Sequence[str] | Sequence[tuple[str, str]]) -> str:
    """Return the first few items as text, with their reasons, and the number of further ones."""
    return some([item if isinstance(item, str) else f"{item[0]} ({item[1]})" for item in items])
