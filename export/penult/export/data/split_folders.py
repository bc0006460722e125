"""Decide by names whether a folder of photos is a class, a split or a whole data set."""

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
# The part of the validation photos that chooses nothing, and certifies thresholds instead (--max-error).
CERTIFY = "certify"


@dataclass
class Folder:
    """One level of a folder: the names of its folders, and the number of its photos."""

    folders: list[str] = field(default_factory=list)
    photos: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)


def scan(folder: Path) -> Folder:
    """Return the direct contents of a folder. Raises OSError."""
    seen = Folder()
    with os.scandir(folder) as entries:
        for entry in entries:
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


def subfolders(folder: Path) -> list[str] | None:
    """Return the names of the folders in a folder; None if it has photos itself or cannot be read."""
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if names.is_hidden(entry.name) or names.is_from_system(entry.name):
                continue
            if is_folder(entry):
                found.append(entry.name)
            elif names.is_photo(entry.name):
                return None
        return sorted(found)
    return None


def holding(folder: Path, path: Path) -> str:
    """Return the first folder on the way from `folder` to a path below it; "" if the path is elsewhere."""
    inside, whole = folder.resolve(), path.resolve()
    return whole.relative_to(inside).parts[0] if whole != inside and whole.is_relative_to(inside) else ""


def has_train(folder: Path) -> bool:
    """Return True if a folder has a training split with class folders."""
    found = [name for name in subfolders(folder) or () if names.split_of(name) == "train"]
    return any(subfolders(folder / name) for name in found)


def is_data(folder: Path) -> bool:
    """Return True if a folder could be DATA: it has a training split, or two folders with photos."""
    inside = subfolders(folder) or []
    if splits_in(folder, Folder(inside)).get("train") or has_train(folder):
        return True
    classes = (name for name in inside if subfolders(folder / name) is None)
    return len(list(islice(classes, 2))) == 2 or (len(inside) == 1 and is_data(folder / inside[0]))


def have_photos(folder: Path, inside: Iterable[str]) -> bool:
    """Return True if any of the named folders of a folder has a photo at any depth."""
    return any(next(walk(folder, name), None) for name in inside)


def splits_in(root: Path, top: Folder) -> dict[str, list[str]]:
    """Return the names of the folders that are splits, by part.

    A class may have the name "train" too. Its folder has photos and no folders, and there are other classes beside it.
    """
    exact: dict[str, list[str]] = defaultdict(list)
    affixed: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in top.folders:
        if part := names.split_of(name):
            exact[part].append(name)
        elif (found := names.affixed_split_of(name)) and subfolders(root / name):
            affixed[found[0]][found[1]].append(name)
    if "train" in exact and not (len(exact) == 1 and _is_class(root, exact["train"], top.folders)):
        return exact
    pairs = [parts for parts in affixed.values() if "train" in parts and (len(parts) > 1 or set(exact) - {"train"})]
    if len(pairs) == 1:
        return {part: exact.get(part, []) + pairs[0].get(part, []) for part in PARTS if {part} & {*exact, *pairs[0]}}
    return {part: found for part, found in exact.items() if part != "train"}


def _is_class(root: Path, train: list[str], folders: list[str]) -> bool:
    """Return True if the folder named train is one of several classes, all of which have photos."""
    flat = (name for name in folders if name not in train and subfolders(root / name) is None)
    return subfolders(root / train[0]) is None and len(list(islice(flat, 2))) == 2


def meant_above(folder: Path) -> str:
    """Return a hint at the folder above, if its folders have photos; else ""."""
    above = folder.resolve().parent
    holding = (name for name in subfolders(above) or () if subfolders(above / name) is None)
    return f"; did you mean {names.printable(str(above))}?" if len(list(islice(holding, 2))) == 2 else ""


def meant_beside(root: Path, name: str) -> str:
    """Return a hint at the folder above `root` if a folder beside it has the only class too, else ""."""
    above = root.resolve().parent
    beside = (each for each in subfolders(above) or () if each != root.resolve().name and not names.split_of(each))
    is_deep = any(name in (subfolders(above / each) or ()) for each in beside)
    return f"did you mean {names.printable(str(above))}?" if is_deep else ""


def is_nested(folder: Path, name: str) -> bool:
    """Return True if the only folder in a split is the split itself again, and not its only class."""
    return name == folder.name or names.split_of(name) is not None or is_data(folder / name)
