"""Read an archive of TorchServe (.mar): its manifest, class names and serialized file. No code in it is executed.

Reads are bounded. Nothing is written under a name from the archive.
"""

import json
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from penult.bundle.errors import PenultError
from penult.export.config.import_model import names_inside
from penult.export.errors import ImportModelError

_MANIFEST = "MAR-INF/MANIFEST.json"
_NAMES = "index_to_name.json"
_MAX_TEXT_BYTES = 16 << 20
_MAX_BYTES = 2 << 30
# Weights are compressed to a tenth at best. A file that unpacks to more than this many times its size is a bomb.
_MAX_RATIO = 100
_ENCRYPTED = 0x1
_ENDINGS = (".onnx", ".safetensors")
# What zipfile raises for damaged, encrypted and unknown kinds of archives.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)


@dataclass(frozen=True)
class MarFile:
    """What an archive says of its model.

    Attributes:
        path: The archive.
        serialized: The name of the file with the weights, in the archive.
        handler: TorchServe's handler, such as image_classifier, or a Python file of the archive.
        labels: The class names of index_to_name.json; empty if it has none.
    """

    path: Path
    serialized: str
    handler: str
    labels: tuple[str, ...]

    @property
    def shown(self) -> str:
        """How messages name the file with the weights."""
        return f"{Path(self.serialized).name!r} in {self.path}"


def is_mar(path: Path) -> bool:
    """Return True if a file is named .mar, or is a zip archive with TorchServe's manifest."""
    if path.suffix.lower() == ".mar":
        return True
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return _MANIFEST in archive.NameToInfo
    except _DAMAGED:
        return False


def read_mar(path: Path) -> MarFile:
    """Return what an archive says of its model; raise ImportModelError."""
    with _opened(path) as archive:
        model = _model_of(path, _text(archive, path, _MANIFEST))
        serialized = model.get("serializedFile")
        if not isinstance(serialized, str) or serialized not in archive.NameToInfo:
            raise _refused(
                f"{path} has no file of weights: the serializedFile of its {_MANIFEST} is {serialized!r}; make it "
                "again with torch-model-archiver --serialized-file"
            )
        names = names_inside(_text(archive, path, _NAMES), f"{_NAMES} of {path}") if _has(archive, _NAMES) else ()
    return MarFile(path, serialized, str(model.get("handler", "")), names)


@contextmanager
def unpacked(mar: MarFile) -> Iterator[Path]:
    """Yield a temporary file with the weights; errors inside name them as the archive does.

    Raises:
        ImportModelError: The file is damaged, encrypted or too large.
    """
    ending = Path(mar.serialized).suffix.lower()
    with TemporaryDirectory(prefix="penult-import-") as folder:
        path = Path(folder) / f"model{ending if ending in _ENDINGS else '.pth'}"
        with _opened(mar.path) as archive:
            info = _checked(archive, mar.path, mar.serialized, _MAX_BYTES)
            with archive.open(info) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
        try:
            yield path
        except PenultError as error:
            raise type(error)(error.reason, error.message.replace(str(path), mar.shown)) from error


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        if not zipfile.is_zipfile(path):
            raise _refused(
                f"{path} is no zip archive; make it again with torch-model-archiver --archive-format default"
            )
        with zipfile.ZipFile(path) as archive:
            yield archive
    except _DAMAGED as error:
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise _refused(f"{path} cannot be unpacked ({said}); copy it, or make it, again") from error


def _has(archive: zipfile.ZipFile, name: str) -> bool:
    return name in archive.NameToInfo


def _checked(archive: zipfile.ZipFile, path: Path, name: str, limit: int) -> zipfile.ZipInfo:
    """Return the entry of a file that may be read; its reader ends at the size that is checked here."""
    info = archive.NameToInfo.get(name)
    if info is None:
        raise _refused(f"{path} has no {name}, so TorchServe did not make it; make it with torch-model-archiver")
    if info.flag_bits & _ENCRYPTED:
        raise _refused(f"{name!r} in {path} is encrypted; make the archive again without")
    if info.file_size > limit:
        raise _refused(f"{name!r} in {path} has {info.file_size >> 20:,} MiB; at most {limit >> 20:,} are read")
    if info.file_size > max(_MAX_TEXT_BYTES, _MAX_RATIO * info.compress_size):
        times = info.file_size // max(1, info.compress_size)
        raise _refused(
            f"{name!r} in {path} unpacks to {times:,} times its size, which no weights do; make the archive again"
        )
    return info


def _text(archive: zipfile.ZipFile, path: Path, name: str) -> str:
    data = archive.read(_checked(archive, path, name, _MAX_TEXT_BYTES))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refused(f"{name} of {path} is not UTF-8 text; make the archive again") from error


def _model_of(path: Path, text: str) -> dict[str, Any]:
    try:
        model = json.loads(text)["model"]
    except (ValueError, KeyError, TypeError, RecursionError):
        model = None
    if not isinstance(model, dict):
        raise _refused(f"{_MANIFEST} of {path} is no manifest of TorchServe; make the archive again")
    return model


def _refused(message: str) -> ImportModelError:
    return ImportModelError("MAR", message)
