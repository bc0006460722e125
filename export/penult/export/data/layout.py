"""Find the classes and splits of a folder in the layouts of common tools.

Only names are read, so a wrong folder is rejected at once. One line reports all problems together.
"""

import contextlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from penult.export.config.train import TrainSettings
from penult.export.data.split_folders import (
    PARTS,
    Folder,
    has_train,
    have_photos,
    holding,
    is_data,
    is_nested,
    meant_above,
    scan,
    splits_in,
    subfolders,
)
from penult.export.errors import DataError
from penult.folders import names
from penult.folders.names import printable
from penult.folders.walk import LeftOut, count, some
from penult.nearest import did_you_mean, nearest

_DEEPEST = 3
# Control characters, line separators and text direction marks. Joiners are part of many scripts and allowed.
_UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp", "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_PER_CLASS = "it needs one folder of photos per class"
_ONLY = "; if all are of one class, move them into a folder with its name"
_OTHER_LABEL_FILES = (".jsonl", ".xlsx", ".xls", ".ods", ".txt", ".xml", ".yaml", ".yml", ".feather", ".arrow")


class Problem(NamedTuple):
    """Why a folder cannot be used: a reason code, and a part of the error message."""

    reason: str
    line: str


def refuse(problems: Sequence[Problem]) -> None:
    """Raise DataError with all problems in one line, if there are any; the first one gives the reason code."""
    if problems:
        raise DataError(problems[0].reason, "; ".join(dict.fromkeys(problem.line for problem in problems)))


@dataclass
class Layout:
    """The splits and classes of a folder.

    Attributes:
        folders: The folder of each split that has one.
        fractions: The fraction of each split that is set aside, test first.
        classes: The class names, sorted.
        labels: By split, the index in `classes` of each class folder.
        left_out: By split, the entries beside class folders that are not used.
    """

    data: Path
    folders: dict[str, Path] = field(default_factory=dict)
    fractions: dict[str, float] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    left_out: dict[str, LeftOut] = field(default_factory=lambda: defaultdict(LeftOut))
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(self, reason: str, line: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(reason, line))

    def take_fraction(self, part: str, option: str) -> None:
        """Read the fraction of a split that is set aside; add a problem if it is none."""
        try:
            self.fractions[part] = float(option)
        except ValueError:
            self.add("DATA_SPLIT", f"--{part} {option} is neither a folder nor a number between 0 and 1")
        else:
            if not 0 < self.fractions[part] < 1:
                self.add("DATA_SPLIT", f"--{part} {option} must be above 0 and below 1")


def find_layout(data: Path, out: Path, val: str, test: str, outliers: Path | None = None) -> Layout:
    """Find the splits and classes of a folder.

    Args:
        data: The folder DATA.
        out: The folder that the run writes to.
        val: A folder of validation photos, or the fraction to set aside.
        test: A folder of test photos, or the fraction to set aside.
        outliers: With one class, the folder of other photos; if it is a split's, its other folders are no classes.

    Returns:
        The layout; its `problems` list what else is wrong.

    Raises:
        DataError: There are no classes to find.
    """
    _check_is_folder(data)
    layout = Layout(data)
    options = {"test": test, "val": val}
    given = {part: Path(option) for part, option in options.items() if option and Path(option).is_dir()}
    root = _entered(layout, out)
    top = scan(root)
    named = splits_in(root, top)
    if "train" in named:
        _take_splits(layout, root, top, named, out, given)
    else:
        _check_no_train(layout, root, top, named)
        layout.folders["train"] = root
        _hint_at_parent(layout, given)
    layout.folders |= given
    _part_given(layout, given)
    _take_fractions(layout, options)
    _check_apart(layout, out)
    for part in PARTS:
        if part in layout.folders:
            _take_classes(layout, part, "train" in named or part in given, outliers)
    if "train" not in layout.folders:
        refuse(layout.problems)
    return layout


def _check_is_folder(data: Path) -> None:
    if data.is_dir():
        return
    shown, lower = printable(str(data)), data.name.lower()
    kind = names.kind_of(lower)
    if not data.exists():
        near = ""
        with contextlib.suppress(OSError):
            near = did_you_mean(data.name, (printable(name) for name in scan(data.parent).folders))
        line = f"{shown} does not exist; give a folder with one folder per class, or a label file{near}"
    elif names.is_photo(lower) or (kind and kind.name != names.ARCHIVE):
        line = f"{shown} is a file; give a folder that has one folder of photos per class"
    elif kind:
        line = f"{shown} is an archive; unpack it, and give the folder that has one folder of photos per class"
    elif lower.endswith(_OTHER_LABEL_FILES):
        line = f"{shown} is no file of labels that penult reads; save it as CSV with the columns image and label"
    else:
        line = f"{shown} is not a folder; give a folder that has one folder of photos per class"
    raise DataError("DATA_MISSING", line)


# -- nesting -----------------------------------------------------------------------------------------------------------


def _entered(layout: Layout, out: Path) -> Path:
    """Return `data`, or the only folder in it that can be meant; raise DataError if there are several."""
    folder = layout.data
    for _ in range(_DEEPEST):
        top = scan(folder)
        inner = [name for name in top.folders if name != holding(folder, out)]
        if top.photos or splits_in(folder, top).get("train"):
            break
        nested = [name for name in inner if has_train(folder / name)]
        if nested and len(inner) > 1 and (len(nested) > 1 or have_photos(folder, set(inner) - set(nested))):
            meant = " or ".join(printable(str(folder / name)) for name in nested[:3])
            raise DataError(
                "DATA_LAYOUT",
                f"{printable(str(folder))} has no class folders; train/ is in {len(nested)} of its {len(inner)} "
                f"folders; did you mean {meant}?",
            )
        if not nested and (len(inner) != 1 or not is_data(folder / inner[0])):
            break
        layout.left_out["train"].add_beside(top.left_out, is_alone=False)
        folder = folder / (nested or inner)[0]
    if folder != layout.data:
        layout.notes.append(
            f"the class folders are deeper than DATA, in {_relative(layout, folder)}; that folder is used"
        )
    return folder


def _relative(layout: Layout, folder: Path) -> str:
    """Return a printable name of a folder, relative to DATA, or its last two parts if it is elsewhere."""
    inside = folder.relative_to(layout.data) if folder.is_relative_to(layout.data) else Path(*folder.parts[-2:])
    return printable(f"{inside}/")


# -- splits ------------------------------------------------------------------------------------------------------------


def _take_splits(
    layout: Layout, root: Path, top: Folder, found: Mapping[str, list[str]], out: Path, given: Mapping[str, Path]
) -> None:
    """Use the folders of splits, and add a note or a problem for the others."""
    layout.left_out["train"].add_beside(top.left_out, is_alone=False)
    for part, folders in found.items():
        if len(folders) > 1 and part not in given:
            several = " and ".join(f"{printable(name)}/" for name in folders)
            choose = f", or name one with --{part} DIR" if part != "train" else ""
            layout.add("DATA_LAYOUT", f"{printable(str(root))} has {several}; remove or rename one{choose}")
        layout.folders[part] = root / folders[0]
    if any(folders[0].casefold() != part for part, folders in found.items()):
        assigned = ", ".join(f"{part} is {_relative(layout, layout.folders[part])}" for part in PARTS if part in found)
        layout.notes.append(f"splits by folder name: {assigned}")
    taken = {name for folders in found.values() for name in folders} | {holding(root, out)}
    if unused := [printable(name) for name in top.folders if name not in taken]:
        layout.notes.append(
            f"{count(len(unused), 'folder')} not used, because no split has such a name: {some(unused)}"
        )


def _inner(layout: Layout, folder: Path) -> Path:
    """Return the folder with a split's classes; some archives nest it, as in seg_train/seg_train."""
    top = scan(folder)
    name = top.folders[0] if len(top.folders) == 1 and not top.photos else ""
    if (
        not name
        or names.normalised(name) in layout.classes
        or not (subfolders(folder / name) and is_nested(folder, name))
    ):
        return folder
    inner = folder / name
    layout.notes.append(f"the class folders are deeper than {_relative(layout, folder)}, in {_relative(layout, inner)}")
    return inner


def _check_no_train(layout: Layout, root: Path, top: Folder, found: Mapping[str, list[str]]) -> None:
    """Add notes or problems for folders named like splits if there is no training split."""
    named = [name for folders in found.values() for name in folders]
    others = set(top.folders) - set(named)
    if named and not others:
        shown = " and ".join(f"{printable(name)}/" for name in named)
        raise DataError(
            "DATA_LAYOUT",
            f"{printable(str(root))} has {shown} and no train/; rename the folder of training photos to train/",
        )
    for name in (name for name in top.folders if names.split_of(name)):
        if others & set(subfolders(root / name) or ()):
            layout.add(
                "DATA_LAYOUT",
                f"{printable(str(root))} has {printable(name)}/ beside class folders; move those into train/",
            )
        else:
            layout.notes.append(f"{printable(name)}/ counts as a class, because there are class folders beside it")


def _hint_at_parent(layout: Layout, given: Mapping[str, Path]) -> None:
    """Add a note on splits beside DATA if DATA is a training split itself."""
    here = layout.data.resolve()
    if _part_of(here.name) != "train":
        return
    with contextlib.suppress(OSError):
        beside = [name for name in scan(here.parent).folders if _part_of(name) in {"val", "test"} - set(given)]
        if beside:
            shown = " and ".join(f"{printable(name)}/" for name in beside)
            layout.notes.append(f"{shown} beside DATA is not used; give the folder above DATA, or --val and --test")


def _part_of(name: str) -> str | None:
    return names.split_of(name) or (names.affixed_split_of(name) or ("", None))[1]


def _part_given(layout: Layout, given: Mapping[str, Path]) -> None:
    """Use a folder that an option names for that split only: with --test DATA/val, no photos of it validate."""
    for part, other in (("test", "val"), ("val", "test")):
        if part not in given or other not in layout.folders:
            continue
        mine, its = given[part].resolve(), layout.folders[other].resolve()
        if not (mine.is_relative_to(its) or its.is_relative_to(mine)):
            continue
        shown = printable(str(given[part]))
        if other in given or mine != its:
            layout.add(
                "DATA_SPLIT", f"--{part} {shown} has photos of the {other} split too; give each split its own folder"
            )
            return
        del layout.folders[other]
        layout.notes.append(
            f"{_relative(layout, given[part])} is used as the {part} split, because of --{part}, and not as {other}"
        )


def _take_fractions(layout: Layout, options: Mapping[str, str]) -> None:
    """Read the fractions of the splits without a folder."""
    for part, option in options.items():
        if part in layout.folders:
            if option != getattr(TrainSettings, part) and not Path(option).is_dir():
                found = _relative(layout, layout.folders[part])
                layout.notes.append(f"--{part} {option} is not used: the {part} split is {found}")
            continue
        layout.take_fraction(part, option)


def _check_apart(layout: Layout, out: Path) -> None:
    """Add a problem for folders below the training photos, because they would count as a class."""
    root = layout.folders["train"]
    for option, folder in (
        ("--out", out),
        ("--val", layout.folders.get("val")),
        ("--test", layout.folders.get("test")),
    ):
        if folder and folder.resolve().is_relative_to(root.resolve()):
            layout.add(
                "DATA_INSIDE",
                f"{option} {printable(str(folder))} is among the photos of {printable(str(root))} and would count as a "
                "class; give a folder outside of it",
            )


# -- classes -----------------------------------------------------------------------------------------------------------


def _take_classes(layout: Layout, part: str, is_split: bool, outliers: Path | None) -> None:
    """Read the class folders of a split; those of the training photos are the classes."""
    folder = layout.folders[part]
    if is_split:
        folder = layout.folders[part] = _inner(layout, folder)
    top = scan(folder)
    shown = printable(str(folder))
    layout.left_out[part].add_beside(top.left_out, is_alone=not top.folders)
    layout.problems += [Problem("DATA_CLASS_NAME", f"{shown} has {line}") for line in _name_problems(top.folders)]
    photos = f"{top.photos} photo{'s' * (top.photos != 1)}"
    if top.photos and not top.folders:
        near = meant_above(folder) if part == "train" else ""
        layout.add("DATA_FLAT", f"{shown} has {photos} and no class folders; {_PER_CLASS}{near or _ONLY}")
        del layout.folders[part]
    elif top.photos:
        where = _relative(layout, folder) if folder != layout.data else "DATA"
        layout.notes.append(f"{photos} directly in {where}, outside the class folders, left out")
    found = _class_folders(top.folders)
    if part == "train":
        layout.classes = tuple(found)
        _note_classes(layout, folder, found)
    labels = {name: place for place, name in enumerate(layout.classes)}
    unknown = [name for name in found if name not in labels] if layout.classes else []
    are_outliers = len(layout.classes) == 1 and outliers and folder.resolve() == outliers.resolve()
    if unknown and not are_outliers:
        lines = [f"{name!r}{nearest_class(name, layout.classes)}" for name in unknown]
        also = f", or give others than {layout.classes[0]!r} as --outliers {shown}" * (len(layout.classes) == 1)
        layout.add(
            "DATA_CLASSES", f"{shown} has classes without training photos: {some(lines)}; add or remove them{also}"
        )
    layout.labels[part] = {each: labels[name] for name, spelt in found.items() if name in labels for each in spelt}
    if unknown and not layout.labels[part]:
        del layout.folders[part]
        if are_outliers:
            layout.take_fraction(part, getattr(TrainSettings, part))


def nearest_class(name: str, classes: Sequence[str]) -> str:
    """Return a hint at the class with the most similar name; else ""."""
    near = nearest(name, classes)
    return f" (did you mean {near!r}?)" if near else ""


def _class_folders(folders: Iterable[str]) -> dict[str, list[str]]:
    """Return the folders of each class by its name in NFC, sorted by name."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        found.setdefault(names.normalised(folder), []).append(folder)
    return {name: sorted(found[name]) for name in sorted(found)}


def _name_problems(folders: Iterable[str]) -> Iterator[str]:
    """Yield a problem for each name that is not UTF-8, not printable, or has spaces around it."""
    for name in folders:
        try:
            name.encode()
        except UnicodeEncodeError:
            yield f"a class folder whose name is not UTF-8: {name!r}, rename it"
            continue
        if not is_printable_name(name):
            yield f"a class folder with an unprintable name: {name!r}, rename it"


def is_printable_name(name: str) -> bool:
    """Return False for a class name with control characters, or with spaces around it."""
    kinds = {unicodedata.category(c) for c in name} | {unicodedata.bidirectional(c) for c in name}
    return not kinds & _UNPRINTABLE and name == name.strip()


def _note_classes(layout: Layout, folder: Path, found: Mapping[str, list[str]]) -> None:
    """Add notes on names that differ only in Unicode form or case, and on splits inside of classes."""
    if merged := [name for name, spelt in found.items() if len(spelt) > 1]:
        layout.notes.append(f"folders whose names differ only in Unicode form (NFC, NFD) are one class: {some(merged)}")
    folded = Counter(name.casefold() for name in found)
    if alike := [name for name in found if folded[name.casefold()] > 1]:
        layout.notes.append(f"{len(alike)} classes differ only in upper and lower case: {some(alike)}")
    inside = {below for spelt in found.values() for name in spelt for below in subfolders(folder / name) or ()}
    if split := sorted(name for name in inside if names.split_of(name)):
        shown = ", ".join(f"{printable(name)}/" for name in split[:3])
        layout.notes.append(f"{shown} inside class folders are not used as splits; create DATA/train/CLASS for that")


def meant_below(layout: Layout) -> str:
    """Return a hint at class folders that have class folders themselves; else ""."""
    root = layout.folders["train"]
    found = [printable(str(root / name)) for name in layout.labels["train"] if is_data(root / name)]
    return f"did you mean {' or '.join(found[:3])}?" if found else ""
