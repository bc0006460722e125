"""The windows of several workers: each writes a file, and their supervisor adds them up."""

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from penult.service.observability.answer_window import Windows, WindowState, merged

_EVERY_S = 1.0


def _path(folder: Path, pid: int) -> Path:
    return folder / f"windows-{pid}.json"


async def write_windows(windows: Windows, folder: Path) -> None:
    """Write this process's windows every second, if they have changed, until cancelled."""
    path, written = _path(folder, os.getpid()), ""
    while True:
        await asyncio.sleep(_EVERY_S)
        text = json.dumps([state.to_dict() for state in windows.states()])
        if text != written:
            scratch = path.with_suffix(".new")
            scratch.write_text(text)
            scratch.replace(path)
            written = text


def read_windows(folder: Path, pids: Callable[[], Iterable[int]]) -> list[WindowState]:
    """Return the windows of all workers that run, one for each version."""
    found: list[WindowState] = []
    for pid in pids():
        with contextlib.suppress(FileNotFoundError):  # it has written none yet
            found += [WindowState.from_dict(values) for values in json.loads(_path(folder, pid).read_text())]
    return merged(found)


def forget_windows(folder: Path, pid: int) -> None:
    """Remove the file of a worker that has ended."""
    _path(folder, pid).unlink(missing_ok=True)
