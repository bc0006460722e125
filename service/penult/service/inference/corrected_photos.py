"""Photos with the labels that people gave them: `penult serve --feedback DIR --feedback-photos-mb N`, off by default.

DIR/MODEL/ has the photos and labels.csv, which `penult label`, `penult train` and `penult svm` read. Photos of callers
are stored, with everything in their files.
"""

import csv
import fcntl
import hashlib
import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penult.service.errors import one_line
from penult.service.inference.decoder import Photo
from penult.service.inference.unsure import CAP, FAILED, ImageFolder, KeepLimits, file_of
from penult.service.observability.metrics import Metrics
from penult.service.observability.truths import Truth

log = logging.getLogger(__name__)

LABELS, _LOCK = "labels.csv", ".labels.lock"
# As `penult label` names them: `guess` is what the model had answered.
_COLUMNS = ("image", "label", "guess")
_REASON = "feedback"


class CorrectedPhotos:
    """Keeps the photos of verdicts with a label. One thread at a time; other processes may use the same folder."""

    def __init__(self, limits: KeepLimits, metrics: Metrics) -> None:
        """Keep at most as many photos and bytes as the limits allow, of all models."""
        self._folder = ImageFolder(limits)
        self._kept, self._dropped = metrics.kept_images, metrics.kept_images_dropped
        for reason in (CAP, FAILED):
            self._dropped.labels(reason)

    def path_of(self, model: str, photo: Photo) -> str:
        """Return the path of a photo below the folder."""
        return f"{model}/{_name(photo)}"

    def keep(self, truth: Truth, photo: Photo) -> bool:
        """Store a photo once, and its label; return whether it is stored now."""
        data, _ = file_of(photo)
        name = truth.photo.rpartition("/")[2]
        try:
            is_new = self._folder.keep(truth.model, name, data)
            if is_new is None:
                self._dropped.labels(CAP).inc()
                return False
            _set_label(self._folder.path / truth.model, name, (name, truth.label, truth.answered))
        except OSError as error:
            self._dropped.labels(FAILED).inc()
            log.warning("a photo with feedback cannot be kept in %s: %s", self._folder.path, one_line(error))
            return False
        if is_new:
            self._kept.labels(truth.model, _REASON).inc()
        return True

    def forget(self, model: str, photo: Photo) -> None:
        """Remove the label of a photo, if it has one; the photo stays, to be labelled."""
        folder = self._folder.path / model
        try:
            if (folder / LABELS).exists():
                _set_label(folder, _name(photo), None)
        except OSError as error:
            log.warning("the label of a photo cannot be removed in %s: %s", folder, one_line(error))


def _name(photo: Photo) -> str:
    data, ending = file_of(photo)
    return f"{hashlib.sha256(data).hexdigest()}.{ending}"


def _set_label(folder: Path, name: str, row: tuple[str, str, str] | None) -> None:
    """Write the row of a photo, or remove it with None. A new row is appended; others replace the file."""
    with _locked(folder):
        path = folder / LABELS
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        rows = list(csv.DictReader(io.StringIO(text)))
        old = next((known for known in rows if known.get("image") == name), None)
        if old is None and row:
            _append(path, _text([row] if text else [_COLUMNS, row]), needs_end=bool(text) and not text.endswith("\n"))
        elif old is not None and (row is None or old.get("label") != row[1]):
            header = list(rows[0])
            changed = old | dict(zip(_COLUMNS, row, strict=True)) if row else None
            kept = [changed if known is old else known for known in rows]
            _replace(path, _text([header, *([each.get(key) or "" for key in header] for each in kept if each)]))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    file = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _text(rows: list) -> str:  # type: ignore[type-arg]
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _append(path: Path, text: str, needs_end: bool) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "w", encoding="utf-8") as opened:
        opened.write(("\n" if needs_end else "") + text)
        opened.flush()
        os.fsync(file)


def _replace(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.new")
    file = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(file)
    scratch.replace(path)
