"""Files in the user's cache folder: replaced atomically, and only the newest are kept."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


def cache_folder(kind: str) -> Path | None:
    """Return the folder for one kind of files, with links resolved; None if the user has no home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given if os.path.isabs(given) else os.path.join(os.path.expanduser("~"), ".cache"))
    return Path(os.path.realpath(base / "penult" / kind)) if base.is_absolute() else None


def replace_file(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file under a temporary name, then rename it; raise OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, scratch = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with open(handle, "wb") as file:
            for piece in pieces:
                file.write(piece)
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise


def forget_oldest(folder: Path, kept: int, max_bytes: int | None = None) -> None:
    """Delete all but the newest files of a folder: at most `kept`, of `max_bytes` together. The newest one stays."""
    by_age = sorted(((path, path.stat()) for path in folder.iterdir()), key=lambda each: each[1].st_mtime, reverse=True)
    used = 0
    for place, (path, status) in enumerate(by_age):
        used += status.st_size
        if place and (place >= kept or (max_bytes is not None and used > max_bytes)):
            path.unlink(missing_ok=True)
