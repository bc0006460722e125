"""Find labelled photos in folders or by a label file, check them, and split them by seed.

As for torchvision's ImageFolder, each class has a folder, with photos at any depth below it. Photos that cannot be read
are left out and named. All other problems stop the run with one line. This module must not import PyTorch.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from penult.export.config.photos import PhotoSource
from penult.export.config.train import TrainSettings
from penult.export.data import file_index
from penult.export.data.file_index import Listing
from penult.export.data.grouping import NearCopies, infer
from penult.export.data.label_file import is_label_file, read_label_file
from penult.export.data.layout import Layout, Problem, find_layout, meant_below, refuse
from penult.export.data.split_folders import CERTIFY, PARTS, meant_beside
from penult.export.data.splitting import GIVEN, Photo, hold_out, merge_groups, owners
from penult.export.data.tables import read_images
from penult.export.errors import DataError
from penult.folders.names import PHOTOS, normalised, printable
from penult.folders.walk import LeftOut, some, walk

# With fewer different photos, none are left for training once some are set aside.
MIN_PER_CLASS = 4
# The SVM's cross-validation needs two photos of each class.
_MIN_TRAINING = 2
# At most so many photos of a rejected folder are read, to name the broken ones too within a second.
_SOON_READ = 500


@dataclass(frozen=True)
class Splits:
    """The photos of one run.

    Attributes:
        notes: Lines for the user, kept in the report. Each names a few files.
        left_out: Every file that cannot be read, with the reason.
        copies: Groups of identical files in more than one split or with more than one label.
        root: The folder that the photos' names start from.
        certify: Validation photos that choose nothing, and certify thresholds; empty without --max-error.
    """

    classes: tuple[str, ...]
    train: tuple[Photo, ...]
    val: tuple[Photo, ...]
    test: tuple[Photo, ...]
    notes: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    copies: tuple[tuple[str, ...], ...] = ()
    root: Path = Path()
    certify: tuple[Photo, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the splits that there are."""
        return (*PARTS, CERTIFY) if self.certify else PARTS

    def name(self, photo: Photo) -> str:
        """Return a photo's printable name, as suspects.csv, predictions.csv and --exclude have it."""
        return _name(self.root, photo.path)

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of every photo's split, class and content."""
        rows = sorted(
            f"{part} {self.classes[photo.label]} {photo.sha256}" for part in self.parts for photo in getattr(self, part)
        )
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    def counts(self) -> dict[str, int]:
        """Return how many photos each split has."""
        return {part: len(getattr(self, part)) for part in self.parts}


def load_splits(
    source: PhotoSource, out: Path, val: str, test: str, seed: int, near_copies: NearCopies | None = None
) -> Splits:
    """Find, check and split the photos of a folder or of a label file.

    Args:
        source: The photos.
        out: The model's folder, which must not lie among the photos.
        val: A folder of validation photos, or the fraction to set aside.
        test: A folder of test photos, or the fraction to set aside.
        seed: Decides which photos are set aside.
        near_copies: Finds groups of near-copies, if the photos are to be grouped by them.

    Raises:
        DataError: The photos cannot be used; the message names all problems.
    """
    if is_label_file(source.data):
        return _load(*_listed(source, val, test), source, seed, near_copies)
    layout = _layout(source, out, val, test)
    _has_name_problems(layout)
    return _load(layout, _walked(layout), source, seed, near_copies)


def check_photos(source: PhotoSource, out: Path, val: str | None = None, test: str | None = None) -> tuple[str, ...]:
    """Raise the DataError of load_splits() if names alone show that the photos cannot be used.

    This is fast for any number of photos. If there are few, they are read too, so that one message names all problems.

    Returns:
        The classes.
    """
    val, test = val or TrainSettings.val, test or TrainSettings.test
    if source.exclude:
        read_images(source.exclude)
    if is_label_file(source.data):
        layout, _ = _listed(source, val, test)
        refuse(layout.problems)
        return layout.classes
    layout = _layout(source, out, val, test)
    if _has_name_problems(layout):
        _load(layout, _walked(layout), source, seed=0)
    return layout.classes


def _layout(source: PhotoSource, out: Path, val: str, test: str) -> Layout:
    for option, given in (("--images", source.images), ("--skip-missing", source.skip_missing)):
        if given and source.data.is_dir():
            raise DataError("DATA_LAYOUT", f"{option} is for label files, and DATA is a folder; leave it out")
    return find_layout(source.data, out, val, test, source.outliers)


def _walked(layout: Layout) -> dict[str, Listing]:
    """List the files of every split's folders."""
    listings = {}
    for part, folder in layout.folders.items():
        listing = file_index.find(folder, layout.labels[part], layout.left_out[part])
        listing.files = [file._replace(split=part) for file in listing.files]
        listings[part] = listing
    return listings


def _listed(source: PhotoSource, val: str, test: str) -> tuple[Layout, dict[str, Listing]]:
    """List the files of a label file, of all splits under that of training."""
    layout, listing = read_label_file(source, val, test)
    counts = Counter(file.label for file in listing.files if file.split == "train")
    few = {label: f"{counts[label]} photos" for label in range(len(layout.classes)) if counts[label] < MIN_PER_CLASS}
    if few:
        layout.problems += _class_problems(layout, few)
    return layout, {"train": listing}


def _load(
    layout: Layout,
    listings: Mapping[str, Listing],
    source: PhotoSource,
    seed: int,
    near_copies: NearCopies | None = None,
) -> Splits:
    """Read the photos, and split them; raise DataError."""
    notes: list[str] = list(layout.notes)
    left_out: list[tuple[str, str]] = []
    problems = list(layout.problems)
    if source.exclude:
        _exclude(layout, list(listings.values()), source.exclude, notes)
    parts: dict[str, list[Photo]] = defaultdict(list)
    for listing in listings.values():
        for part, photo in _readable(layout.data, listing, notes, left_out, problems):
            parts[part].append(photo)
    if parts["train"]:
        problems += _class_problems(layout, _too_few(layout, parts["train"], listings["train"]))
    refuse(problems and problems + _hints(layout, listings["train"].left_out))
    _group(layout, parts, source.group_by, near_copies, notes)
    for later, part in zip(reversed(range(len(layout.fractions))), layout.fractions, strict=True):
        parts["train"], parts[part] = hold_out(
            parts["train"], layout.fractions[part], f"{seed} {part}", _MIN_TRAINING + later
        )
        notes.append(f"{part} split: {len(parts[part])} photos set aside at random (seed {seed}), as DATA names none")
    refuse(list(_group_problems(parts)))
    _note_absent(layout.classes, parts, notes)
    copies = _copies(layout.data, parts, notes)
    train, val, test = (tuple(parts[part]) for part in PARTS)
    return Splits(layout.classes, train, val, test, tuple(notes), tuple(left_out), tuple(copies), layout.data)


def _exclude(layout: Layout, listings: Sequence[Listing], listed: Path, notes: list[str]) -> None:
    """Take the files that a file names out of the listings; raise DataError if it names none of them."""
    names = {os.path.normpath(normalised(name)) for name in read_images(listed)}
    found = set()
    for listing in listings:
        kept = []
        for file in listing.files:
            name = normalised(_name(layout.data, listing.root / file.path))
            (found.add(name) if name in names else kept.append(file))
        listing.files = kept
    shown = printable(str(listed))
    if not found:
        raise DataError(
            "DATA_EXCLUDE",
            f"--exclude {shown} names none of the photos; give paths as in suspects.csv, such as "
            f"{_name(layout.data, listings[0].root / listings[0].files[0].path)}",
        )
    unknown = sorted(names - found)
    unused = f"; {len(unknown)} that it names are not among the photos: {some(unknown)}" if unknown else ""
    notes.append(f"{len(found)} photos are left out by --exclude {printable(listed.name)}{unused}")


def _group(
    layout: Layout, parts: dict[str, list[Photo]], group_by: str, near_copies: NearCopies | None, notes: list[str]
) -> None:
    """Join the photos that must stay in one split; raise DataError for a given group in two splits."""
    everything = [photo for photos in parts.values() for photo in photos]
    refuse(list(_parted(parts)))
    found, more = infer(everything, layout.classes, layout.data, group_by, near_copies)
    if not found and not any(photo.group for photo in everything):
        return
    merged = iter(merge_groups(everything, found))
    for photos in parts.values():
        photos[:] = [next(merged) for _ in photos]
    sizes = Counter(photo.group for photos in parts.values() for photo in photos if photo.group)
    together = (
        f"{len(sizes)} groups keep {sizes.total()} photos together, at most {max(sizes.values(), default=0)} each"
    )
    notes += [together if sizes else "no photos are in one group, so the splits are those without groups", *more]
    across = sum(1 for where in _parts_of_groups(parts).values() if len(where) > 1)
    if across:
        notes.append(f"{across} groups have photos in more than one given split, so accuracy may be too high")


def _parts_of_groups(parts: Mapping[str, Sequence[Photo]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for part, photos in parts.items():
        for photo in photos:
            if photo.group:
                found[photo.group].add(part)
    return found


def _parted(parts: Mapping[str, Sequence[Photo]]) -> Iterator[Problem]:
    """Yield a problem if a label file gives the photos of one group to several splits."""
    across = [(group.removeprefix(GIVEN), where) for group, where in _parts_of_groups(parts).items() if len(where) > 1]
    if across:
        named = [f"{group!r} ({' and '.join(sorted(where))})" for group, where in sorted(across)]
        yield Problem("DATA_GROUPS", f"{len(across)} groups are in two splits: {some(named)}; give each one split")


def _group_problems(parts: Mapping[str, Sequence[Photo]]) -> Iterator[Problem]:
    """Yield a problem for a split that groups leave without photos."""
    for part in PARTS:
        if not parts[part]:
            yield Problem(
                "DATA_GROUPS",
                f"no {part} photos are left, because groups stay whole; use smaller groups, or name the splits",
            )


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
    """Return problems: one class that names show to be a mistake, and classes with too few photos."""
    problems = []
    root, name = layout.folders.get("train"), layout.classes[0]
    if len(layout.classes) == 1 and root and (meant := meant_below(layout) or meant_beside(root, name)):
        problems.append(Problem("DATA_ONE_CLASS", f"only one class ({name!r}) was found; {meant}"))
    named = [f"{layout.classes[label]!r} has {text}" for label, text in few.items()]
    needed = f"at least {MIN_PER_CLASS} are needed, some tens are better"
    if len(named) == 1:
        problems.append(Problem("DATA_FEW", f"class {named[0]}; {needed}"))
    elif named:
        problems.append(Problem("DATA_FEW", f"{len(named)} classes have too few photos: {some(named)}; {needed}"))
    return problems


def _hints(layout: Layout, left_out: LeftOut) -> list[Problem]:
    """Return possible causes: files that must be converted, class folders that hold class folders."""
    lines = [*left_out.convertible(), meant_below(layout)] if layout.folders else []
    return [Problem("", line) for line in lines if line]


def _readable(
    data: Path, listing: Listing, notes: list[str], left_out: list[tuple[str, str]], problems: list[Problem]
) -> list[tuple[str, Photo]]:
    """Return the readable photos with split and digest; add the others to `notes`, `left_out` and `problems`."""
    photos, broken = [], list(listing.broken)
    for file, answer in zip(listing.files, file_index.check(listing), strict=True):
        if file_index.is_digest(answer):
            group = file.group and GIVEN + file.group
            photos.append((file.split, Photo(Path(os.path.join(listing.root, file.path)), file.label, answer, group)))
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
    notes += file_index.too_large(named)
    left_out += [*closed, *named]
    return photos


def _too_few(layout: Layout, photos: Sequence[Photo], listing: Listing) -> dict[int, str]:
    """Return the classes with too few different photos of their own, each with a text on what it has."""
    readable = Counter(photo.label for photo in photos)
    own = Counter(owners(photos).values())
    unread: dict[int, list[tuple[str, str]]] = defaultdict(list)
    labels = {file.path: file.label for file in listing.files} if listing.unread else {}
    for path, why in listing.unread:
        label = labels[path] if path in labels else layout.labels["train"][path.partition("/")[0]]
        unread[label].append((_name(layout.data, listing.root / path), why))
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
