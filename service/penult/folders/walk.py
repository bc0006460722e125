"""Walk folders of images lazily and in order, for learning and for clients, and count what is left out.

Links are followed, as torchvision's ImageFolder does. Names that begin with a dot are skipped silently.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from penult.folders import names

NAMED = 3
LOOP = "a link back to a folder that holds it"
_OTHER = ""


class Entry(NamedTuple):
    """A file that may be a photo: its path within the folder walked, and what the system says of it."""

    path: str
    entry: os.DirEntry[str]


@dataclass
class LeftOut:
    """What a walk left out: files by kind with the first few names, folders and files with the reason."""

    files: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    system: Counter[str] = field(default_factory=Counter)
    closed: list[tuple[str, str]] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)

    def add(self, path: str, name: str) -> None:
        """Count a file that is no photo by its name."""
        kind = names.kind_of(name)
        key = kind.name if kind else _OTHER
        self.files[key] += 1
        if len(examples := self.examples.setdefault(key, [])) < NAMED:
            examples.append(path)

    def add_beside(self, other: "LeftOut", is_alone: bool) -> None:
        """Count the files beside folders: of systems, pictures to convert, and archives if nothing else is there."""
        self.system += other.system
        for kind in names.KINDS:
            if other.files[kind.name] and (is_alone or kind.name != names.ARCHIVE):
                self.files[kind.name] += other.files[kind.name]
                self.examples.setdefault(kind.name, []).extend(other.examples[kind.name])

    def convertible(self) -> list[str]:
        """Return a line for each kind of file out of which photos can be made: how many, and how."""
        return [
            f"{count(self.files[kind.name], f'{kind.name} file')} left out; "
            + kind.advice.format(suffix=Path(self.examples[kind.name][0]).suffix)
            for kind in names.KINDS
            if self.files[kind.name]
        ]

    def lines(self, name: Callable[[str], str] = names.printable, with_broken: bool = True) -> list[str]:
        """Return lines for people, a kind of thing each; `name` makes a path fit to be shown."""
        lines = self.convertible()
        if others := self.files[_OTHER]:
            shown = some([name(path) for path in self.examples[_OTHER]], others)
            lines.append(f"{count(others, 'file')} not {names.PHOTOS} and left out: {shown}")
        if self.system:
            each = [f"{names.printable(what)} ({times})" for what, times in sorted(self.system.items())]
            lines.append(f"{count(self.system.total(), 'file or folder')} left out that systems add: {some(each)}")
        if self.broken and with_broken:
            shown = some([f"{name(path)} ({why})" for path, why in self.broken])
            lines.append(f"{count(len(self.broken), 'photo')} left out that cannot be read: {shown}")
        if self.closed:
            shown = some([f"{name(path)} ({why})" for path, why in self.closed])
            lines.append(f"{count(len(self.closed), 'folder')} left out that cannot be entered: {shown}")
        return lines


def count(number: int, what: str) -> str:
    """Return a number with its noun and verb, as "1 file is" and "2 files are". "a or b" counts both."""
    if number == 1:
        return f"1 {what} is"
    return f"{number} {' or '.join(f'{word}s' for word in what.split(' or '))} are".replace(" or ", " and ")


def some(items: list[str], total: int | None = None) -> str:
    """Return the first few, and how many more there are of `total` (default: the items)."""
    more = (len(items) if total is None else total) - NAMED
    return ", ".join(items[:NAMED]) + (f" and {more} more" if more > 0 else "")


class _Level(NamedTuple):
    inside: str
    entries: Iterator[os.DirEntry[str]]
    above: frozenset[tuple[int, int]]


def walk(root: str | Path, inside: str = "", left_out: LeftOut | None = None) -> Iterator[Entry]:
    """Yield what may be a photo below root/inside, depth first in order of name, paths relative to `root`.

    A link to nowhere is yielded: opening it raises why it cannot be read. Pipes and devices, whose reading might
    never end, go into `left_out.broken`; folders that cannot be opened, or hold themselves, into `left_out.closed`. The
    names of one branch are in memory at a time.
    """
    left_out = LeftOut() if left_out is None else left_out
    levels = [_open(root, inside, frozenset(), left_out)]
    while levels:
        level = levels[-1]
        below = None
        for entry in level.entries:
            if names.is_hidden(entry.name):
                continue
            path = f"{level.inside}/{entry.name}" if level.inside else entry.name
            if names.is_from_system(entry.name):
                left_out.system[entry.name] += 1
            elif is_folder(entry):
                below = _open(root, path, level.above, left_out)
                break
            elif not names.is_photo(entry.name):
                left_out.add(path, entry.name)
            elif _is_endless(entry):
                left_out.broken.append((path, "not a file"))
            else:
                yield Entry(path, entry)
        if below:
            levels.append(below)
        else:
            levels.pop()


def _open(root: str | Path, inside: str, above: frozenset[tuple[int, int]], left_out: LeftOut) -> _Level:
    """Return a folder's entries in order, none of them if it cannot be entered."""
    path = os.path.join(root, inside)
    try:
        status = os.stat(path)
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise OSError(0, LOOP)
        with os.scandir(path) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        left_out.closed.append((inside or str(root), error.strerror or "unreadable"))
        return _Level(inside, iter(()), above)
    return _Level(inside, iter(entries), above | {here})


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, for one
        return False


def _is_endless(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.is_file() and not stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return False
