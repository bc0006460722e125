"""The files below class folders: listed, read once, and remembered, so that the next run need not read them again.

What was found about a file is kept in the user's cache folder and holds while its size, times and inode stay the same.
That memory only saves time: where it is damaged, or cannot be written, the files are read again.
"""

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from penult.bundle.errors import ImageError
from penult.bundle.guards import DEFAULT_LIMITS, PixelBudget
from penult.bundle.preprocess import PREPROCESS_VERSION, Preprocess, decode_opened, decoding_pixels, open_image
from penult.console import progress
from penult.folders.walk import LeftOut, walk
from penult.interrupts import pool

# What is learnt from can be served.
OWN_LIMITS = DEFAULT_LIMITS
# Of all threads that decode photos: 1.6 GB at most, which the largest photos alone come near.
DECODING = PixelBudget(2 * DEFAULT_LIMITS.max_decoded_pixels)
# A small target lets JPEGs be checked to their last byte at an eighth of their size.
_GLANCE = Preprocess(resize=32, crop=32)
# One future per photo would cost as much as a small photo. Processes were slower on real ones: Pillow frees the GIL.
_CHUNK = 64
# Raise it when files that could not be read can be, too.
_FORMAT = 3
# File systems date changes in steps of a few ms: a file changed later than this could change again under its date.
_SETTLED_NS = 100_000_000
_KEPT = 16
_DIGEST_LENGTH = 64


class File(NamedTuple):
    """A file that may be a photo: `path` is relative to the listing's root; `identity` changes when the file does."""

    label: int
    path: str
    size: int
    changed_ns: int
    identity: str


@dataclass
class Listing:
    """What lies below the class folders of `root`; paths are relative to it, each list in order of class and name."""

    root: Path
    files: list[File] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    unread: list[tuple[str, str]] = field(default_factory=list)

    @property
    def broken(self) -> list[tuple[str, str]]:
        """What has a photo's name and cannot be opened, with the reason."""
        return self.left_out.broken


def find(root: Path, folders: Mapping[str, int], left_out: LeftOut | None = None) -> Listing:
    """List what lies below root/FOLDER at any depth, as walk() finds it; `folders` gives each its label.

    Links to nowhere come as broken. `left_out` has what was met before.
    """
    listing = Listing(root, left_out=left_out or LeftOut())
    for name, label in folders.items():
        for path, entry in walk(root, name, listing.left_out):
            _add(listing, label, path, entry)
    return listing


def _add(listing: Listing, label: int, path: str, entry: os.DirEntry[str]) -> None:
    try:
        s = entry.stat()
    except OSError as error:
        listing.broken.append((path, error.strerror or "unreadable"))
        return
    identity = f"{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}"
    listing.files.append(File(label, path, s.st_size, s.st_ctime_ns, identity))


def check(listing: Listing) -> list[str]:
    """Return for every file of the listing its SHA-256 (64 hex digits), or why it cannot be used: see is_digest()."""
    settled = time.time_ns() - _SETTLED_NS
    memory = _Memory(listing.root)
    answers = [memory.recall(file) for file in listing.files]
    unknown = [place for place, answer in enumerate(answers) if answer is None]
    for place, answer in zip(unknown, _look_at(listing, unknown), strict=True):
        answers[place] = answer
    found = [answer or "" for answer in answers]
    if unknown or len(memory.entries) > len(found):
        memory.write(
            (file, answer)
            for file, answer in zip(listing.files, found, strict=True)
            # An ImageError's reason (in capitals) holds as long as the file; what the system said may pass.
            if file.changed_ns < settled and (is_digest(answer) or answer.isupper())
        )
    return found


def is_digest(answer: str) -> bool:
    """Whether check() gave a digest, and not a reason."""
    return len(answer) == _DIGEST_LENGTH and set(answer) <= set("0123456789abcdef")


def _look_at(listing: Listing, places: list[int]) -> Iterator[str]:
    chunks = [[listing.files[place] for place in places[at : at + _CHUNK]] for at in range(0, len(places), _CHUNK)]

    def look(chunk: list[File]) -> list[str]:
        return [_look(os.path.join(listing.root, file.path), file.size) for file in chunk]

    with pool() as threads:
        yield from progress(itertools.chain.from_iterable(threads.map(look, chunks)), "reading photos", len(places))


def _look(path: str, size: int) -> str:
    try:
        OWN_LIMITS.check_bytes(size)
        with open(path, "rb", buffering=0) as file:
            data = file.read()
        image = open_image(data, OWN_LIMITS, _GLANCE)
        with DECODING.hold(decoding_pixels(image)):
            decode_opened(image)
    except ImageError as error:
        return error.reason
    except OSError as error:
        return error.strerror or "unreadable"
    return hashlib.sha256(data).hexdigest()


class _Memory:
    """The answers of earlier runs on one folder, in a file of the user's cache folder."""

    def __init__(self, root: Path) -> None:
        """Load what there is."""
        self.path = _memory_path(root)
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

    def recall(self, file: File) -> str | None:
        """Return the answer for this file if it has not changed since."""
        identity, _, answer = self.entries.get(file.path, "").rpartition(" ")
        return answer if identity == file.identity else None

    def write(self, answers: Iterator[tuple[File, str]]) -> None:
        """Replace the file, so that a reader sees the old one or the new one; only the newest few folders are kept."""
        entries = {file.path: f"{file.identity} {answer}" for file, answer in answers}
        body = json.dumps({"made_by": _made_by(), "files": entries}, separators=(",", ":")).encode()
        with contextlib.suppress(OSError):
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                _replace(self.path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
                _forget_oldest(self.path.parent)


def _made_by() -> str:
    return f"{_FORMAT} {PREPROCESS_VERSION} {importlib.metadata.version('pillow')}"


def _memory_path(root: Path) -> Path | None:
    """Return where answers about this folder are kept; None if there is no cache folder, or only one inside it."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given if os.path.isabs(given) else os.path.join(os.path.expanduser("~"), ".cache"))
    here = os.path.realpath(root)
    folder = Path(os.path.realpath(base / "penult" / "photos"))
    if not base.is_absolute() or folder.is_relative_to(here):
        return None
    return folder / f"{hashlib.sha256(os.fsencode(here)).hexdigest()[:32]}.json"


def _replace(path: Path, data: bytes) -> None:
    handle, scratch = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.replace(scratch, path)
    except OSError:
        os.unlink(scratch)
        raise


def _forget_oldest(folder: Path) -> None:
    by_age = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in by_age[_KEPT:]:
        path.unlink(missing_ok=True)
