"""Infer which photos show one thing: those of one folder, of one moment, or near-copies of each other."""

import bisect
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from penult.bundle.opening import read_exif
from penult.console import progress
from penult.export.config.photos import BY_FOLDER, BY_LIKENESS, BY_TIME
from penult.export.data.splitting import Photo
from penult.folders import names
from penult.folders.walk import count
from penult.interrupts import pool

# Returns a group for each photo, "" for none, from the photos' contents.
NearCopies = Callable[[Sequence[Photo]], Sequence[str]]

# Photos of one camera that follow each other this closely show one thing.
GAP = timedelta(seconds=10)
_EXIF, _TIME, _FRACTION, _MAKE, _MODEL, _SERIAL = 0x8769, 0x9003, 0x9291, 0x010F, 0x0110, 0xA431


def infer(
    photos: Sequence[Photo], classes: Sequence[str], root: Path, group_by: str, near_copies: NearCopies | None
) -> tuple[Sequence[str], list[str]]:
    """Return a group for each photo, and notes for the user.

    Args:
        photos: All photos of a run.
        classes: The class names.
        root: The folder that the photos' names start from.
        group_by: One of config.photos.GROUPINGS.
        near_copies: Finds near-copies, for "near-duplicates".
    """
    if group_by == BY_FOLDER:
        return [_folder(photo, classes[photo.label], root) for photo in photos], []
    if group_by == BY_TIME:
        return _moments(photos)
    if group_by == BY_LIKENESS and near_copies:
        return near_copies(photos), []
    return [], []


def _folder(photo: Photo, class_name: str, root: Path) -> str:
    """Return the folder of a photo; "" for `root` and the folders of classes and splits."""
    above = photo.path.parent
    inside = str(above.relative_to(root)) if above.is_relative_to(root) else str(above)
    is_class = names.normalised(above.name) == class_name or names.split_of(above.name)
    return "" if inside == "." or is_class else inside


def _moments(photos: Sequence[Photo]) -> tuple[list[str], list[str]]:
    """Join photos of one camera between which less than GAP passed, by the time in their EXIF data."""
    with pool() as threads:
        found = list(progress(threads.map(_taken, photos), "reading times", len(photos)))
    by_camera: dict[str, list[tuple[datetime, int]]] = defaultdict(list)
    for place, taken in enumerate(found):
        if taken:
            by_camera[taken[0]].append((taken[1], place))
    groups = [""] * len(photos)
    for camera, times in by_camera.items():
        times.sort()
        starts = [now for before, (now, _) in zip([None, *(time for time, _ in times)], times, strict=False)
                  if before is None or now - before > GAP]  # fmt: skip
        for time, place in times:
            groups[place] = f"{camera} {starts[bisect.bisect_right(starts, time) - 1].isoformat()}"
    without = found.count(None)
    notes = [f"{count(without, 'photo')} without a time in the EXIF data, and stand alone"] if without else []
    return groups, notes


def _taken(photo: Photo) -> tuple[str, datetime] | None:
    """Return the camera and the time of a photo; None if its EXIF data lack the time."""
    try:
        exif = read_exif(photo.path)
        inner = exif.get_ifd(_EXIF)
        taken = datetime.strptime(str(inner[_TIME]).strip(), "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
        fraction = str(inner.get(_FRACTION, "")).strip()
        taken += timedelta(seconds=float(f"0.{fraction}")) if fraction.isdigit() else timedelta()
        return f"{exif.get(_MAKE, '')} {exif.get(_MODEL, '')} {inner.get(_SERIAL, '')}", taken
    except Exception:  # EXIF data are input: whatever is wrong with them, the photo has no time
        return None
