"""List and check the files below class folders, and cache the results for the next run.

The result for a file is kept in the user's cache folder. It is valid while size, times and inode stay the same. If the
cache is damaged or cannot be written, the files are read again.
"""

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from penult.bundle.errors import ImageError
from penult.bundle.formats import HEIC_LIBRARY, can_read_heic
from penult.bundle.guards import DEFAULT_LIMITS, LEARNING_LIMITS, PixelBudget
from penult.bundle.preprocess import PREPROCESS_VERSION, Preprocess, decode_opened, decoding_pixels, open_image
from penult.console import progress
from penult.export.cache_folder import cache_folder, forget_oldest, replace_file
from penult.folders.names import HEIC, kind_of
from penult.folders.walk import LeftOut, some, walk
from penult.interrupts import pool

# Training accepts photos of the same sizes as the service, in all formats.
OWN_LIMITS = LEARNING_LIMITS
# For all threads that decode photos: at most 1.6 GB, which only the largest photos need.
DECODING = PixelBudget(2 * DEFAULT_LIMITS.max_decoded_pixels)
# With a small target size, JPEGs are checked to their last byte at an eighth of their size.
_SMALL = Preprocess(resize=32, crop=32)
# One future per photo would cost as much as a small photo. Processes were slower, since Pillow releases the GIL.
_CHUNK = 64
# Increase it if files that could not be read before can be read now.
_FORMAT = 4
# Timestamps have steps of a few ms. A file changed more recently could change again without a new timestamp.
_SETTLED_NS = 100_000_000
_KEPT = 16
_DIGEST_LENGTH = 64


class File(NamedTuple):
    """A photo's file. `path` is relative to the listing's root, and `identity` changes with the file.

    `split` and `group` are those that a label file gives it, "" if none.
    """

    label: int
    path: str
    size: int
    changed_ns: int
    identity: str
    split: str = ""
    group: str = ""


def file_of(label: int, path: str, status: os.stat_result, split: str = "", group: str = "") -> File:
    """Return a file by what the system reports of it."""
    identity = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
    return File(label, path, status.st_size, status.st_ctime_ns, identity, split, group)


@dataclass
class Listing:
    """The files below the class folders of `root`, in order of class and name; paths are relative to `root`."""

    root: Path
    files: list[File] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    unread: list[tuple[str, str]] = field(default_factory=list)

    @property
    def broken(self) -> list[tuple[str, str]]:
        """Files with a photo's name that cannot be opened, with the reason."""
        return self.left_out.broken


def find(root: Path, folders: Mapping[str, int], left_out: LeftOut | None = None) -> Listing:
    """List the files below root/FOLDER at any depth, in the order of walk().

    Args:
        root: The folder of the class folders.
        folders: The label of each class folder.
        left_out: Entries that were skipped before; further ones are added. Dangling links count as broken.
    """
    listing = Listing(root, left_out=left_out or LeftOut())
    for name, label in folders.items():
        for path, entry in walk(root, name, listing.left_out):
            if kind_of(entry.name) is HEIC and not can_read_heic():
                listing.left_out.add(path, entry.name)
            else:
                _add(listing, label, path, entry)
    return listing


def _add(listing: Listing, label: int, path: str, entry: os.DirEntry[str]) -> None:
    try:
        listing.files.append(file_of(label, path, entry.stat()))
    except OSError as error:
        listing.broken.append((path, error.strerror or "unreadable"))


def check(listing: Listing) -> list[str]:
    """Return for every file its SHA-256 (64 hex digits) or why it cannot be used; is_digest() distinguishes them."""
    settled = time.time_ns() - _SETTLED_NS
    stored = _StoredAnswers(listing.root)
    answers = [stored.get(file) for file in listing.files]
    unknown = [place for place, answer in enumerate(answers) if answer is None]
    for place, answer in zip(unknown, _check_files(listing, unknown), strict=True):
        answers[place] = answer
    found = [answer or "" for answer in answers]
    if unknown or len(stored.entries) > len(found):
        stored.write(
            (file, answer)
            for file, answer in zip(listing.files, found, strict=True)
            # The reason of an ImageError (in capitals) is valid as long as the file; a system error may be temporary.
            if file.changed_ns < settled and (is_digest(answer) or answer.isupper())
        )
    return found


def is_digest(answer: str) -> bool:
    """Return True if an answer of check() is a digest and not a reason."""
    return len(answer) == _DIGEST_LENGTH and set(answer) <= set("0123456789abcdef")


def _check_files(listing: Listing, places: list[int]) -> Iterator[str]:
    chunks = [[listing.files[place] for place in places[at : at + _CHUNK]] for at in range(0, len(places), _CHUNK)]

    def check_chunk(chunk: list[File]) -> list[str]:
        return [_check_file(os.path.join(listing.root, file.path), file.size) for file in chunk]

    with pool() as threads:
        yield from progress(
            itertools.chain.from_iterable(threads.map(check_chunk, chunks)), "reading photos", len(places)
        )


def _check_file(path: str, size: int) -> str:
    try:
        OWN_LIMITS.check_bytes(size)
        with open(path, "rb", buffering=0) as file:
            data = file.read()
        image = open_image(data, OWN_LIMITS, _SMALL)
        with DECODING.hold(decoding_pixels(image)):
            decode_opened(image)
    except ImageError as error:
        return error.reason
    except OSError as error:
        return error.strerror or "unreadable"
    return hashlib.sha256(data).hexdigest()


class _StoredAnswers:
    """The answers of earlier runs for one folder, in a file of the user's cache folder."""

    def __init__(self, root: Path) -> None:
        """Load the file if it exists."""
        self.path = _store_path(root)
        self.entries: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            self._load()

    def _load(self) -> None:
        if self.path:
            digest, _, body = self.path.read_bytes().partition(b"\n")
            if hashlib.sha256(body).hexdigest().encode() == digest:
                stored = json.loads(body)
                if stored["made_by"] == _made_by():
                    self.entries = stored["files"]

    def get(self, file: File) -> str | None:
        """Return the answer for a file if it has not changed since."""
        identity, _, answer = self.entries.get(file.path, "").rpartition(" ")
        return answer if identity == file.identity else None

    def write(self, answers: Iterator[tuple[File, str]]) -> None:
        """Replace the file atomically, and delete those of all but the newest folders."""
        entries = {file.path: f"{file.identity} {answer}" for file, answer in answers}
        body = json.dumps({"made_by": _made_by(), "files": entries}, separators=(",", ":")).encode()
        with contextlib.suppress(OSError):
            if self.path:
                replace_file(self.path, [hashlib.sha256(body).hexdigest().encode(), b"\n", body])
                forget_oldest(self.path.parent, _KEPT)


def too_large(unread: Iterable[tuple[str, str]]) -> list[str]:
    """Return a note on the photos above the size limits of training and the service, of names and reasons."""
    large = [f"{name} ({why})" for name, why in unread if why in ("IMAGE_TOO_MANY_BYTES", "IMAGE_TOO_MANY_PIXELS")]
    if not large:
        return []
    limits = f"the limits of training and penult serve ({DEFAULT_LIMITS})"
    return [f"{len(large)} of these exceed {limits}; make them smaller: {some(large)}"]


def _made_by() -> str:
    heic = importlib.metadata.version(HEIC_LIBRARY) if can_read_heic() else "no HEIC"
    return f"{_FORMAT} {PREPROCESS_VERSION} {importlib.metadata.version('pillow')} {heic}"


def _store_path(root: Path) -> Path | None:
    """Return the file of this folder's answers; None if there is no cache folder, or it is inside this folder."""
    here, folder = os.path.realpath(root), cache_folder("photos")
    if folder is None or folder.is_relative_to(here):
        return None
    return folder / f"{hashlib.sha256(os.fsencode(here)).hexdigest()[:32]}.json"
