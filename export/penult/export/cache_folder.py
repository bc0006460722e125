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


def forget_oldest(folder: Path, kept: int) -> None:
    """Delete all but the newest files of a folder."""
    by_age = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in by_age[kept:]:
        path.unlink(missing_ok=True)
