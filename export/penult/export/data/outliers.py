"""Photos that are none of the class of a model, for its report only."""

from pathlib import Path

from penult.export.data import file_index
from penult.export.data.splitting import Photo
from penult.export.errors import DataError
from penult.folders.names import PHOTOS, normalised, printable
from penult.folders.walk import some


def check_outliers(folder: Path) -> None:
    """Raise DataError if there is no such folder."""
    if not folder.is_dir():
        shown = printable(str(folder))
        raise DataError("OUTLIERS_MISSING", f"--outliers {shown} is no folder; give a folder of photos of other things")


def load_outliers(folder: Path, class_name: str) -> tuple[tuple[Photo, ...], tuple[str, ...]]:
    """Return the photos below a folder at any depth, and notes on those left out.

    Photos in a folder that has the name of the class are left out. So a folder of test photos, such as MVTec's test/,
    can be given as it is.

    Raises:
        DataError: There are no such photos.
    """
    check_outliers(folder)
    shown = printable(str(folder))
    listing = file_index.find(folder, {"": 0})
    kept = [f for f in listing.files if normalised(f.path.partition("/")[0]) != class_name]
    own, listing.files = len(listing.files) - len(kept), kept
    answers = file_index.check(listing)
    photos = tuple(
        Photo(folder / file.path, 0, answer)
        for file, answer in zip(kept, answers, strict=True)
        if file_index.is_digest(answer)
    )
    if not photos:
        raise DataError("OUTLIERS_EMPTY", f"--outliers {shown} has no {PHOTOS} files that can be read")
    notes = [f"{own} photos of {class_name!r} in --outliers are left out"] if own else []
    broken = [
        f"{printable(file.path)} ({answer})"
        for file, answer in zip(kept, answers, strict=True)
        if not file_index.is_digest(answer)
    ]
    if broken:
        notes.append(f"{len(broken)} photos in --outliers cannot be read and are left out: {some(broken)}")
    return photos, tuple(notes)
