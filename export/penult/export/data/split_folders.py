"""What a folder of photos may be, by the names in it: a class, a split, or a whole data set."""

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from penult.folders import names
from penult.folders.walk import LeftOut, is_folder, walk

PARTS = ("train", "val", "test")


@dataclass
class Look:
    """One level of a folder: names of folders, and how many photos lie beside them."""

    folders: list[str] = field(default_factory=list)
    photos: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)


def look(folder: Path) -> Look:
    """Return what lies right in a folder. Raises OSError."""
    seen = Look()
    with os.scandir(folder) as scan:
        for entry in scan:
            if names.is_hidden(entry.name):
                continue
            if names.is_from_system(entry.name):
                seen.left_out.system[entry.name] += 1
            elif is_folder(entry):
                seen.folders.append(entry.name)
            elif names.is_photo(entry.name):
                seen.photos += 1
            else:
                seen.left_out.add(entry.name, entry.name)
    seen.folders.sort()
    return seen


def peek(folder: Path) -> list[str] | None:
    """Return the names of the folders in a folder that holds no photo itself; None if it does, or cannot be entered."""
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as scan:
        for entry in scan:
            if names.is_hidden(entry.name) or names.is_from_system(entry.name):
                continue
            if is_folder(entry):
                found.append(entry.name)
            elif names.is_photo(entry.name):
                return None
        return sorted(found)
    return None


def holding(folder: Path, path: Path) -> str:
    """Return the name of the folder right in `folder` in which a path lies; "" if it lies elsewhere."""
    inside, whole = folder.resolve(), path.resolve()
    return whole.relative_to(inside).parts[0] if whole != inside and whole.is_relative_to(inside) else ""


def has_train(folder: Path) -> bool:
    """Whether a folder has a split to train on, with class folders in it."""
    found = [name for name in peek(folder) or () if names.split_of(name) == "train"]
    return any(peek(folder / name) for name in found)


def is_data(folder: Path) -> bool:
    """Whether a folder could be given as DATA: it has a split to train on, or two folders with photos right in them."""
    inside = peek(folder) or []
    if splits_in(folder, Look(inside)).get("train") or has_train(folder):
        return True
    classes = (name for name in inside if peek(folder / name) is None)
    return len(list(islice(classes, 2))) == 2 or (len(inside) == 1 and is_data(folder / inside[0]))


def have_photos(folder: Path, inside: Iterable[str]) -> bool:
    """Whether any of the folders inside of a folder has a photo somewhere."""
    return any(next(walk(folder, name), None) for name in inside)


def splits_in(root: Path, top: Look) -> dict[str, list[str]]:
    """Return the names of the folders that are splits, by part.

    A class may be called "train", too: such a folder holds photos, no folders, and stands beside other classes.
    """
    exact: dict[str, list[str]] = defaultdict(list)
    affixed: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in top.folders:
        if part := names.split_of(name):
            exact[part].append(name)
        elif (found := names.affixed_split_of(name)) and peek(root / name):
            affixed[found[0]][found[1]].append(name)
    if "train" in exact and not (len(exact) == 1 and _is_class(root, exact["train"], top.folders)):
        return exact
    pairs = [parts for parts in affixed.values() if "train" in parts and (len(parts) > 1 or set(exact) - {"train"})]
    if len(pairs) == 1:
        return {part: exact.get(part, []) + pairs[0].get(part, []) for part in PARTS if {part} & {*exact, *pairs[0]}}
    return {part: found for part, found in exact.items() if part != "train"}


def _is_class(root: Path, train: list[str], folders: list[str]) -> bool:
    """Whether a folder called train is one of several classes: all hold photos."""
    flat = (name for name in folders if name not in train and peek(root / name) is None)
    return peek(root / train[0]) is None and len(list(islice(flat, 2))) == 2


def is_nested(folder: Path, name: str) -> bool:
    """Whether the only folder in a split repeats the split, rather than being its only class."""
    return name == folder.name or names.split_of(name) is not None or is_data(folder / name)
