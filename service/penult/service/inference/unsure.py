"""Keep images that a model is unsure of, so that they can be labelled: `penult serve --keep-unsure`, off by default.

A request only puts references into a bounded queue; one thread writes the files. What cannot be queued or written is
counted, and serving continues. Images of callers are stored, with everything in their files.
"""

import fcntl
import hashlib
import json
import logging
import os
import queue
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from penult.bundle import formats
from penult.bundle.errors import ImageError
from penult.service.inference.decoder import Photo, RawPhoto, size_bytes
from penult.service.inference.request import ModelOutput, Output
from penult.service.inference.results import Answer, Outcome
from penult.service.inference.scoring import Scoring
from penult.service.observability.metrics import Metrics

log = logging.getLogger(__name__)

NOVEL, LOW = "novel", "low_probability"
QUEUE_FULL, CAP, FAILED = "queue_full", "cap", "failed"
_QUEUE_IMAGES, _QUEUE_BYTES = 256, 64 << 20
# A full folder is counted again at most so often, because the operator may have labelled and removed images.
_RECOUNT_S = 30.0
_CLOSE_S = 2.0
_TOTALS = ".kept-images"
_TEMPORARY = ".new-"
# Files of labels may stand beside the images: they are none.
_LABEL_FILES = "labels."
_ENDINGS = {kind: kind.lower() for kind in formats.FORMATS} | {"JPEG": "jpg", "TIFF": "tif"}


@dataclass(frozen=True)
class KeepLimits:
    """What is kept, and how much of it.

    Attributes:
        folder: Gets FOLDER/MODEL/SHA256.jpg.
        below: An image is kept if the probability of its best class is below this, or if it is novel.
        max_images: At most so many files, of all models.
        max_bytes: At most so many bytes of files, of all models.
    """

    folder: Path
    below: float
    max_images: int
    max_bytes: int

    def lines(self) -> Iterator[str]:
        """Yield what the log says at start."""
        yield (
            f"images of callers are stored in {self.folder}: novel ones, and those of a probability below "
            f"{self.below:g}, at most {self.max_images:,} images and {self.max_bytes >> 20:,} MiB (--keep-unsure)"
        )
        try:
            if self.folder.stat().st_mode & 0o077:
                yield f"other users of this machine may open {self.folder}; chmod 700 {self.folder}"
        except OSError:
            return  # it is made with the first image


class UnsureImages:
    """Keeps images that models are unsure of, from any thread."""

    def __init__(self, limits: KeepLimits, metrics: Metrics) -> None:
        """Keep nothing yet; the thread starts with the first image."""
        self._below = limits.below
        self._folder = ImageFolder(limits)
        self._kept, self._dropped = metrics.kept_images, metrics.kept_images_dropped
        for reason in (QUEUE_FULL, CAP, FAILED):
            self._dropped.labels(reason)
        self._waiting: queue.SimpleQueue[tuple[str, str, Photo] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._images = self._bytes = 0
        self._thread: threading.Thread | None = None
        self._said = ""

    def watch(
        self,
        scoring: Scoring,
        images: Sequence[Photo | ImageError],
        finish: Callable[[list[Output]], list[Outcome]],
        outputs: list[Output],
    ) -> list[Outcome]:
        """Return what `finish` answers, and queue the images that the answers are unsure of."""
        outcomes = finish(outputs)
        places = [place for place, outcome in enumerate(outcomes) if isinstance(outcome, Answer)]
        answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
        seen, novel = [images[place] for place in places], [answer.is_novel for answer in answers]
        if scoring.model.manifest.has_one_class:
            self._queue(scoring, seen, novel, None)
        elif answers and answers[0].classes:
            # A withheld answer is kept, whatever --keep-unsure-below says.
            sure = [0.0 if answer.abstained else answer.classes[0].probability for answer in answers]
            self._queue(scoring, seen, novel, sure)
        else:
            self._queue(scoring, seen, novel, _confidence(scoring, outputs))
        return outcomes

    def watch_rows(
        self,
        scoring: Scoring,
        images: Sequence[Photo | ImageError],
        rows: Sequence[ModelOutput],
        novelty: Sequence[tuple[float, bool]],
    ) -> None:
        """Queue the images that a model is unsure of, by its outputs and by their novelty; empty without a baseline."""
        novel = [is_novel for _, is_novel in novelty] or [False] * len(rows)
        self._queue(scoring, images, novel, _confidence(scoring, rows))

    def _queue(
        self,
        scoring: Scoring,
        images: Sequence[Photo | ImageError],
        are_novel: Sequence[bool],
        confidence: Sequence[float] | None,
    ) -> None:
        """Queue the images that are novel, or whose best class has a low probability."""
        for place, image in enumerate(images):
            is_low = confidence is not None and confidence[place] < self._below
            if (is_low or are_novel[place]) and not isinstance(image, ImageError):
                self._put(scoring.model.name, NOVEL if are_novel[place] else LOW, image)

    def close(self) -> None:
        """Write what waits, for at most two seconds."""
        if self._thread:
            self._waiting.put(None)
            self._thread.join(_CLOSE_S)

    def _put(self, model: str, reason: str, image: Photo) -> None:
        if self._folder.is_full:
            self._dropped.labels(CAP).inc()
            return
        size = size_bytes(image)
        with self._lock:
            has_room = self._images < _QUEUE_IMAGES and self._bytes + size <= _QUEUE_BYTES
            if has_room:
                self._images, self._bytes = self._images + 1, self._bytes + size
                if not self._thread:
                    self._thread = threading.Thread(target=self._write_all, name="kept-images", daemon=True)
                    self._thread.start()
        if has_room:
            self._waiting.put((model, reason, image))
        else:
            self._dropped.labels(QUEUE_FULL).inc()

    def _write_all(self) -> None:
        while waiting := self._waiting.get():
            model, reason, image = waiting
            try:
                self._write(model, reason, image)
            except Exception as error:  # a full disk, or a bug: serving continues
                self._dropped.labels(FAILED).inc()
                self._say(f"an image cannot be kept in {self._folder.path}: {error}; serving continues")
            with self._lock:
                self._images, self._bytes = self._images - 1, self._bytes - size_bytes(image)
            del waiting, image  # it would stay in memory until the next one comes

    def _write(self, model: str, reason: str, image: Photo) -> None:
        data, ending = file_of(image)
        kept = self._folder.keep(model, f"{hashlib.sha256(data).hexdigest()}.{ending}", data)
        if kept is None:
            self._dropped.labels(CAP).inc()
            self._say(f"{self._folder.path} is full, so no more images are kept; label and remove some")
            return
        self._said = ""
        if kept:
            self._kept.labels(model, reason).inc()

    def _say(self, line: str) -> None:
        """Log a line once, until an image can be kept again."""
        if line != self._said:
            self._said = line
            log.warning("%s", line)


def _confidence(scoring: Scoring, outputs: Sequence[Output]) -> list[float] | None:
    """Return the probability of the best class of each image that has outputs; None of a model of one class."""
    good = [output for output in outputs if isinstance(output, ModelOutput)]
    return scoring.confidence([o.logits for o in good], [o.descriptor for o in good]) if good else []


class ImageFolder:
    """The files that are kept, by all processes of the server."""

    def __init__(self, limits: KeepLimits) -> None:
        self.path, self._limits = limits.folder, limits
        # The files of earlier servers are counted first.
        self._next_count_s = 0.0
        self._is_full = False

    @property
    def is_full(self) -> bool:
        """Whether an image did not fit, and the files are not to be counted again yet."""
        return self._is_full and time.monotonic() < self._next_count_s

    def keep(self, model: str, name: str, data: bytes) -> bool | None:
        """Write a file below the model's folder; return False if it is there already, None if the folder is full.

        Raises:
            OSError: It cannot be written.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._totals() as totals:
            known = _read(totals)
            has_room = known is not None and self._fits(*known, data)
            if known is None or (not has_room and time.monotonic() >= self._next_count_s):
                known = _count(self.path)
                self._next_count_s = time.monotonic() + _RECOUNT_S
            images, size = known
            target = self.path / model / name
            if target.exists():
                return False
            self._is_full = not self._fits(images, size, data)
            if self._is_full:
                _write(totals, images, size)
                return None
            target.parent.mkdir(mode=0o700, exist_ok=True)
            _write_new(target, data)
            _write(totals, images + 1, size + len(data))
            return True

    def _fits(self, images: int, size: int, data: bytes) -> bool:
        return images < self._limits.max_images and size + len(data) <= self._limits.max_bytes

    @contextmanager
    def _totals(self) -> Iterator[int]:
        """Open the file with the numbers of images and bytes; other processes wait until it is closed."""
        descriptor = os.open(self.path / _TOTALS, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def file_of(image: Photo) -> tuple[bytes, str]:
    """Return the file of an image and its ending: encoded bytes as received, pixels as PNG."""
    if isinstance(image, RawPhoto):
        return _png(image), "png"
    return image.data, _ENDINGS.get(formats.format_of(image.data) or "", "image")


def _png(image: RawPhoto) -> bytes:
    """Return a PNG of pixels."""
    row = 3 * image.width
    rows = b"".join(b"\0" + image.rgb[at : at + row] for at in range(0, row * image.height, row))
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _count(folder: Path) -> tuple[int, int]:
    """Return how many images are kept, and their bytes; remove what a server that was killed left unfinished."""
    images = size = 0
    for model in folder.iterdir():
        for file in model.iterdir() if model.is_dir() else ():
            if file.name.startswith(_TEMPORARY):
                file.unlink()
            elif not file.name.startswith((".", _LABEL_FILES)):
                images, size = images + 1, size + file.stat().st_size
    return images, size


def _read(totals: int) -> tuple[int, int] | None:
    try:
        images, size = json.loads(os.pread(totals, 99, 0))
    except ValueError:
        return None
    return int(images), int(size)


def _write(totals: int, images: int, size: int) -> None:
    os.ftruncate(totals, 0)
    os.pwrite(totals, json.dumps([images, size]).encode(), 0)


def _write_new(target: Path, data: bytes) -> None:
    """Write a file that only this user may read; it has its name once it is complete."""
    scratch = target.with_name(f"{_TEMPORARY}{target.name}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        scratch.replace(target)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
