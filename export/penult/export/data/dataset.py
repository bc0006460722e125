"""Labelled photos in folders: found, checked, and split once by seed.

The layout is ImageFolder's: one folder per class, photos anywhere below it. Photos that cannot be read are left out
and named; what else is wrong stops the run with one line that names all of it. Nothing here needs PyTorch.
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

# Fewer different photos than this leave nothing to learn from once some are set aside.
MIN_PER_CLASS = 4
# The SVM's cross-validation needs two of each class.
_MIN_LEARNT_FROM = 2
# Of a folder that is wrong, so many photos are read all the same, to name the broken ones too: within a second.
_SOON_READ = 500
_SEVERAL = -1


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
    """Find, check and split the photos that `settings` names; raise DataError, with all that is wrong."""
    layout = find_layout(settings.data, settings.out, settings.val, settings.test)
    _told_without_reading(layout)
    return _load(layout, settings.seed)


def check_folders(data: Path, out: Path, val: str | None = None, test: str | None = None) -> None:
    """Raise DataError as load_splits() would, if names alone show that the photos cannot be learnt from.

    This takes a moment however many photos there are; of a small folder the photos are read too, so that all that is
    wrong with it is in one message.
    """
    layout = find_layout(data, out, val or TrainSettings.val, test or TrainSettings.test)
    if _told_without_reading(layout):
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
            parts["train"], layout.fractions[part], f"{seed} {part}", _MIN_LEARNT_FROM + later
        )
        notes.append(f"{part} split: {len(parts[part])} photos set aside at random (seed {seed}); no folder has them")
    _note_absent(layout.classes, parts, notes)
    copies = _copies(layout.data, parts, notes)
    train, val, test = (tuple(parts[part]) for part in PARTS)
    return Splits(layout.classes, train, val, test, tuple(notes), tuple(left_out), tuple(copies))


def _told_without_reading(layout: Layout) -> bool:
    """Return whether names alone show that something is wrong; raise DataError at once if reading would take long."""
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
    """Return how many files of each class may be photos, counted up to MIN_PER_CLASS in each of its folders."""
    counts = [0] * classes
    for name, label in labels.items():
        counts[label] += sum(1 for _ in islice(walk(folder, name, met), MIN_PER_CLASS))
    return counts


def _empty(folder: Path) -> Problem:
    return Problem(
        "DATA_EMPTY", f"{printable(str(folder))} holds no photos; it needs one folder per class with {PHOTOS} files"
    )


def _class_problems(layout: Layout, few: Mapping[int, str]) -> list[Problem]:
    """Return what is wrong with the classes: that there are too few, or too few photos of some."""
    problems = []
    if len(layout.classes) < 2:
        line = f"only one class ({layout.classes[0]!r}) was found; two or more are needed, each a folder of photos"
        problems.append(Problem("DATA_ONE_CLASS", line))
    named = [f"{layout.classes[label]!r} has {text}" for label, text in few.items()]
    needed = f"at least {MIN_PER_CLASS} are needed, and some tens are better"
    if len(named) == 1:
        problems.append(Problem("DATA_FEW", f"class {named[0]}; {needed}"))
    elif named:
        problems.append(Problem("DATA_FEW", f"{len(named)} classes have too few photos: {some(named)}; {needed}"))
    return problems


def _hints(layout: Layout, left_out: LeftOut) -> list[Problem]:
    """Return what may be the cause: files to convert, a folder above the one that was meant."""
    lines = [*left_out.convertible(), meant_below(layout)]
    return [Problem("", line) for line in lines if line]


def _readable(
    data: Path, listing: file_index.Listing, notes: list[str], left_out: list[tuple[str, str]], problems: list[Problem]
) -> list[Photo]:
    """Return the photos that can be read, with their digests; note and collect what is left out."""
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
    """Note photos that are larger than training and the service take."""
    if large := [entry for entry in named if entry[1] in ("IMAGE_TOO_MANY_BYTES", "IMAGE_TOO_MANY_PIXELS")]:
        notes.append(
            f"{len(large)} of these are above the limits of training and penult serve ({DEFAULT_LIMITS}); make them "
            f"smaller: {_some(large)}"
        )


def _too_few(layout: Layout, photos: Sequence[Photo], listing: file_index.Listing) -> dict[int, str]:
    """Return the classes with too few photos that differ and that no other class has too, and what they have."""
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
    return printable(str(path.relative_to(data)) if path.is_relative_to(data) else "/".join(path.parts[-3:]))


def _some(items: Sequence[str] | Sequence[tuple[str, str]]) -> str:
    """Return the first few, with the reason where there is one, and how many more there are."""
    return some([item if isinstance(item, str) else f"{item[0]} ({item[1]})" for item in items])
