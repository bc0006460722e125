"""Set photos aside at random, by class and seed; identical photos and groups are never parted."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from penult.export.errors import DiskError

_SEVERAL = -1
# Beginnings of the names of groups, in the order of preference: a given group, an inferred one, identical files.
GIVEN, _MORE, _BYTES = "1 ", "2 ", "3 "


@dataclass(frozen=True, slots=True)
class Photo:
    """One labelled photo.

    `label` indexes the classes. `sha256` (hex) is of the file's bytes. Photos of one `group` are always in one split;
    "" is none.
    """

    path: Path
    label: int
    sha256: str = ""
    group: str = ""

    def read(self) -> bytes:
        """Return the file's bytes; raise DiskError if it cannot be read."""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise DiskError(
                "PHOTO_GONE", f"photo {self.path} can no longer be read: {error.strerror or error}; restore it"
            ) from error


def owners(photos: Iterable[Photo]) -> dict[str, int]:
    """Return the label of each content by its SHA-256; a negative number if photos disagree."""
    found: dict[str, int] = {}
    for photo in photos:
        found[photo.sha256] = photo.label if found.get(photo.sha256, photo.label) == photo.label else _SEVERAL
    return found


def merge_groups(photos: Sequence[Photo], more: Sequence[str] = ()) -> list[Photo]:
    """Join photos that share a group, an entry of `more`, or their bytes.

    Args:
        photos: The photos, with the groups that they have so far.
        more: A further group for each photo, "" for none; empty if there are none.

    Returns:
        The photos in order. Photos that are joined with no other content have no group.
    """
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        while (above := parents.setdefault(key, key)) != key:
            parents[key] = parents[above]
            key = parents[above]
        return key

    keys = [
        [_BYTES + photo.sha256, *filter(None, (photo.group, extra and _MORE + extra))]
        for photo, extra in zip(photos, more or [""] * len(photos), strict=True)
    ]
    for first, *others in keys:
        for other in others:
            low, high = sorted((root(first), root(other)))
            parents[high] = low
    members: dict[str, set[str]] = defaultdict(set)
    for found in keys:
        members[root(found[0])].update(found)
    # The root is the least key: a group's name if it has one, so that a further photo does not rename the group.
    names = {key: key if sum(each.startswith(_BYTES) for each in found) > 1 else "" for key, found in members.items()}
    return [replace(photo, group=names[root(found[0])]) for photo, found in zip(photos, keys, strict=True)]


def units_of(photos: Sequence[Photo]) -> list[str]:
    """Return a name for each photo and those that it must not be parted from: its group, and identical files."""
    return [_unit(photo) for photo in merge_groups(photos)]


def hold_out(photos: Sequence[Photo], fraction: float, seed: str, keep: int) -> tuple[list[Photo], list[Photo]]:
    """Set a share of every class aside.

    At least one photo of each class is set aside, and at least `keep` different ones stay. Copies of one photo and
    photos of one group stay together, so with few groups a class may be absent from one side. A photo with several
    labels is never set aside, because no answer to it is correct. The order depends on contents and seed alone. So when
    photos are added, hardly any former training photo becomes a test photo.

    Returns:
        The photos that stay, and those set aside.
    """
    owner = owners(photos)
    drawn = {key: hashlib.sha256(f"{seed} {key}".encode()).digest() for key in {_unit(photo) for photo in photos}}
    units: dict[str, list[Photo]] = defaultdict(list)
    for photo in photos:
        units[_unit(photo)].append(photo)
    counts = {
        key: Counter(photo.label for photo in of_unit)
        for key, of_unit in units.items()
        if all(owner[photo.sha256] != _SEVERAL for photo in of_unit)
    }
    wanted = {
        label: max(1, round(fraction * count)) for label, count in Counter(photo.label for photo in photos).items()
    }
    aside = _choose(counts, sorted(counts, key=lambda key: (drawn[key], key)), wanted, keep)
    kept, out = [], []
    ordered = sorted(photos, key=lambda photo: (photo.label, drawn[_unit(photo)], photo.sha256, photo.path))
    for _, in_order in groupby(ordered, key=lambda photo: photo.label):
        of_class = list(in_order)
        out += [photo for photo in of_class if _unit(photo) in aside]
        rest = [photo for photo in of_class if _unit(photo) not in aside]
        kept += [photo for photo in rest if owner[photo.sha256] != _SEVERAL]
        kept += [photo for photo in rest if owner[photo.sha256] == _SEVERAL]
    return kept, out


def _unit(photo: Photo) -> str:
    """Return what names a photo together with those that it must not be parted from."""
    return photo.group or photo.sha256


def _choose(counts: Mapping[str, Counter[int]], order: Sequence[str], wanted: Mapping[int, int], keep: int) -> set[str]:
    """Take units in order while they fit into what is wanted of their classes; the smallest if none fits.

    At least `keep` units of each class stay.
    """
    left = Counter(label for key in order for label in counts[key])
    taken: Counter[int] = Counter()
    aside: set[str] = set()

    def take(key: str) -> None:
        aside.add(key)
        taken.update(counts[key])
        left.subtract(counts[key].keys())

    smallest: dict[int, int] = {}
    for key in order:
        for label, count in counts[key].items():
            smallest[label] = min(count, smallest.get(label, count))
    most = {label: max(count, smallest.get(label, 0)) for label, count in wanted.items()}
    for key in order:
        if all(taken[label] + count <= most[label] and left[label] > keep for label, count in counts[key].items()):
            take(key)
    for label in sorted(wanted):  # groups of several classes may have fitted into none of them
        if not taken[label]:
            able = [key for key in order if label in counts[key] and all(left[each] > keep for each in counts[key])]
            if able:
                take(min(able, key=lambda key: counts[key].total()))
    return aside
