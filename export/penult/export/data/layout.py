"""Where the classes and splits of a folder are, however the tool that wrote it names and nests them.

Nothing is read but names, so that a wrong folder is refused at once. All problems are reported together, in one line.
"""

import contextlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from penult.export.config.train import TrainSettings
from penult.export.data.split_folders import (
    PARTS,
    Look,
    has_train,
    have_photos,
    holding,
    is_data,
    is_nested,
    look,
    peek,
    splits_in,
)
from penult.export.errors import DataError
from penult.folders import names
from penult.folders.names import printable
from penult.folders.walk import LeftOut, count, some
from penult.nearest import did_you_mean, nearest

_DEEPEST = 3
# Control characters, line separators, what reverses the text after it; joiners are part of many scripts and stay.
_UNPRINTABLE = {"Cc", "Zl", "Zp", "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_PER_CLASS = "it needs one folder of photos per class"
_LABEL_FILES = (".csv", ".tsv", ".parquet", ".json", ".jsonl", ".xlsx", ".txt", ".xml", ".yaml", ".yml")


class Problem(NamedTuple):
    """Why a folder cannot be learnt from: a reason for programs, and a part of a line for people."""

    reason: str
    line: str


def refuse(problems: Sequence[Problem]) -> None:
    """Raise DataError with all problems in one line, if there are any; the first one gives the reason."""
    if problems:
        raise DataError(problems[0].reason, "; ".join(dict.fromkeys(problem.line for problem in problems)))


@dataclass
class Layout:
    """What a folder's names say.

    `folders` are those of the splits, `fractions` belong to the splits that are drawn, the test first, and `labels`
    give each class folder of a split its place in `classes`. `left_out` has what lies beside class folders.
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
        """Note a problem."""
        self.problems.append(Problem(reason, line))


def find_layout(data: Path, out: Path, val: str, test: str) -> Layout:
    """Find the splits and classes of `data`; raise DataError if there are none to find.

    `out` is where the run will write; `val` and `test` are their options: a folder, or the fraction to draw. What else
    is wrong stands in the layout's problems.
    """
    _check_is_folder(data)
    layout = Layout(data)
    options = {"test": test, "val": val}
    given = {part: Path(option) for part, option in options.items() if option and Path(option).is_dir()}
    root = _entered(layout, out)
    top = look(root)
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
            _take_classes(layout, part, is_split="train" in named or part in given)
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
            near = did_you_mean(data.name, (printable(name) for name in look(data.parent).folders))
        line = (
            f"{shown} is not a folder, and there is nothing of that name; give a folder with one folder per class{near}"
        )
    elif names.is_photo(lower) or (kind and kind.name != names.ARCHIVE):
        line = f"{shown} is one file; give the folder that holds one folder of photos per class"
    elif kind:
        line = (
            f"{shown} is an archive, not a folder; unpack it, and give the folder with one folder of photos per class"
        )
    elif lower.endswith(_LABEL_FILES):
        line = (
            f"{shown} is not a folder; labels are not read from files: put each class's photos into a folder of its own"
        )
    else:
        line = f"{shown} is not a folder; give a folder that holds one folder of photos per class"
    raise DataError("DATA_MISSING", line)


# -- nesting -----------------------------------------------------------------------------------------------------------


def _entered(layout: Layout, out: Path) -> Path:
    """Return `data`, or the only folder in it that the photos can be meant by; raise DataError if there are several."""
    folder = layout.data
    for _ in range(_DEEPEST):
        top = look(folder)
        inner = [name for name in top.folders if name != holding(folder, out)]
        if top.photos or splits_in(folder, top).get("train"):
            break
        nested = [name for name in inner if has_train(folder / name)]
        if nested and len(inner) > 1 and (len(nested) > 1 or have_photos(folder, set(inner) - set(nested))):
            meant = " or ".join(printable(str(folder / name)) for name in nested[:3])
            raise DataError(
                "DATA_LAYOUT",
                f"{printable(str(folder))} holds no class folders: train/ lies deeper, in {len(nested)} of its "
                f"{len(inner)} folders; did you mean {meant}?",
            )
        if not nested and (len(inner) != 1 or not is_data(folder / inner[0])):
            break
        layout.left_out["train"].add_beside(top.left_out, is_alone=False)
        folder = folder / (nested or inner)[0]
    if folder != layout.data:
        layout.notes.append(
            f"the class folders lie deeper than DATA, in {_relative(layout, folder)}: that folder is used"
        )
    return folder


def _relative(layout: Layout, folder: Path) -> str:
    """Return a folder's name for people, relative to DATA, with no folder above it."""
    inside = folder.relative_to(layout.data) if folder.is_relative_to(layout.data) else Path(*folder.parts[-2:])
    return printable(f"{inside}/")


# -- splits ------------------------------------------------------------------------------------------------------------


def _take_splits(
    layout: Layout, root: Path, top: Look, found: Mapping[str, list[str]], out: Path, given: Mapping[str, Path]
) -> None:
    """Take the folders of splits, and account for all others."""
    layout.left_out["train"].add_beside(top.left_out, is_alone=False)
    for part, folders in found.items():
        if len(folders) > 1 and part not in given:
            several = " and ".join(f"{printable(name)}/" for name in folders)
            choose = f", or name one with --{part} DIR" if part != "train" else ""
            layout.add("DATA_LAYOUT", f"{printable(str(root))} has {several}; remove or rename one{choose}")
        layout.folders[part] = root / folders[0]
    if any(folders[0].casefold() != part for part, folders in found.items()):
        told = ", ".join(f"{part} is {_relative(layout, layout.folders[part])}" for part in PARTS if part in found)
        layout.notes.append(f"splits by their folders' names: {told}")
    taken = {name for folders in found.values() for name in folders} | {holding(root, out)}
    if unused := [printable(name) for name in top.folders if name not in taken]:
        layout.notes.append(
            f"{count(len(unused), 'folder')} not used, as the names are those of no split: {some(unused)}"
        )


def _inner(layout: Layout, folder: Path) -> Path:
    """Return a split's folder, or the one in it where its classes lie: archives hold seg_train/seg_train, and such."""
    top = look(folder)
    name = top.folders[0] if len(top.folders) == 1 and not top.photos else ""
    if not name or names.normalised(name) in layout.classes or not (peek(folder / name) and is_nested(folder, name)):
        return folder
    inner = folder / name
    layout.notes.append(f"the class folders lie deeper than {_relative(layout, folder)}, in {_relative(layout, inner)}")
    return inner


def _check_no_train(layout: Layout, root: Path, top: Look, found: Mapping[str, list[str]]) -> None:
    """Explain folders that are splits by their names where none is there to train on."""
    named = [name for folders in found.values() for name in folders]
    others = set(top.folders) - set(named)
    if named and not others:
        shown = " and ".join(f"{printable(name)}/" for name in named)
        raise DataError(
            "DATA_LAYOUT",
            f"{printable(str(root))} has {shown} and no train/; name the folder of the photos to learn from train/",
        )
    for name in (name for name in top.folders if names.split_of(name)):
        if others & set(peek(root / name) or ()):
            layout.add(
                "DATA_LAYOUT",
                f"{printable(str(root))} has {printable(name)}/ beside class folders; move those into train/",
            )
        else:
            layout.notes.append(f"{printable(name)}/ is taken for a class, since class folders lie beside it")


def _hint_at_parent(layout: Layout, given: Mapping[str, Path]) -> None:
    """Note the splits beside a DATA that is itself one."""
    here = layout.data.resolve()
    if _part_of(here.name) != "train":
        return
    with contextlib.suppress(OSError):
        beside = [name for name in look(here.parent).folders if _part_of(name) in {"val", "test"} - set(given)]
        if beside:
            shown = " and ".join(f"{printable(name)}/" for name in beside)
            layout.notes.append(f"{shown} beside DATA is not used; give the folder above, or --val and --test")


def _part_of(name: str) -> str | None:
    return names.split_of(name) or (names.affixed_split_of(name) or ("", None))[1]


def _part_given(layout: Layout, given: Mapping[str, Path]) -> None:
    """Let a folder that an option names be that split alone: with --test DATA/val, DATA/val validates nothing."""
    for part, other in (("test", "val"), ("val", "test")):
        if part not in given or other not in layout.folders:
            continue
        mine, its = given[part].resolve(), layout.folders[other].resolve()
        if not (mine.is_relative_to(its) or its.is_relative_to(mine)):
            continue
        shown = printable(str(given[part]))
        if other in given or mine != its:
            layout.add(
                "DATA_SPLIT", f"--{part} {shown} holds photos of the {other} split too; give each its own folder"
            )
            return
        del layout.folders[other]
        layout.notes.append(f"{_relative(layout, given[part])} is the {part} split, as --{part} says, and not {other}")


def _take_fractions(layout: Layout, options: Mapping[str, str]) -> None:
    """Take the fractions of the splits that have no folder."""
    for part, option in options.items():
        if part in layout.folders:
            if option != getattr(TrainSettings, part) and not Path(option).is_dir():
                found = _relative(layout, layout.folders[part])
                layout.notes.append(f"--{part} {option} is not used: the {part} split is {found}")
            continue
        try:
            layout.fractions[part] = float(option)
        except ValueError:
            layout.add("DATA_SPLIT", f"--{part} {option}: neither a folder nor a number between 0 and 1")
        else:
            if not 0 < layout.fractions[part] < 1:
                layout.add("DATA_SPLIT", f"--{part} {option}: must be above 0 and below 1")


def _check_apart(layout: Layout, out: Path) -> None:
    """Refuse folders that would be taken for a class of the photos among which they lie."""
    root = layout.folders["train"]
    for option, folder in (
        ("--out", out),
        ("--val", layout.folders.get("val")),
        ("--test", layout.folders.get("test")),
    ):
        if folder and folder.resolve().is_relative_to(root.resolve()):
            layout.add(
                "DATA_INSIDE",
                f"{option} {printable(str(folder))} lies among the photos of {printable(str(root))}, where it would be "
                "taken for a class; give a folder outside of it",
            )


# -- classes -----------------------------------------------------------------------------------------------------------


def _take_classes(layout: Layout, part: str, is_split: bool) -> None:
    """Take a split's class folders; those of the training photos are the classes."""
    folder = layout.folders[part]
    if is_split:
        folder = layout.folders[part] = _inner(layout, folder)
    top = look(folder)
    shown = printable(str(folder))
    layout.left_out[part].add_beside(top.left_out, is_alone=not top.folders)
    layout.problems += [Problem("DATA_CLASS_NAME", f"{shown} has {line}") for line in _name_problems(top.folders)]
    photos = f"{top.photos} photo{'s' * (top.photos != 1)}"
    if top.photos and not top.folders:
        near = _meant_above(folder) if part == "train" else ""
        layout.add("DATA_FLAT", f"{shown} holds {photos} and no class folders; {_PER_CLASS}{near}")
        del layout.folders[part]
    elif top.photos:
        where = _relative(layout, folder) if folder != layout.data else "DATA"
        layout.notes.append(f"{photos} in {where} itself, in no class folder: left out")
    found = _class_folders(top.folders)
    if part == "train":
        layout.classes = tuple(found)
        _note_classes(layout, folder, found)
    labels = {name: place for place, name in enumerate(layout.classes)}
    unknown = [name for name in found if name not in labels] if layout.classes else []
    if unknown:
        lines = [f"{name!r}{_nearest(name, layout.classes)}" for name in unknown]
        layout.add("DATA_CLASSES", f"{shown} has classes that training photos lack: {some(lines)}; add or remove them")
    layout.labels[part] = {each: labels[name] for name, spelt in found.items() if name in labels for each in spelt}
    if unknown and not layout.labels[part]:
        del layout.folders[part]


def _nearest(name: str, classes: Sequence[str]) -> str:
    near = nearest(name, classes)
    return f" (did you mean {near!r}?)" if near else ""


def _class_folders(folders: Iterable[str]) -> dict[str, list[str]]:
    """Return the folders of each class by its name in NFC, in order of name."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        found.setdefault(names.normalised(folder), []).append(folder)
    return {name: sorted(found[name]) for name in sorted(found)}


def _name_problems(folders: Iterable[str]) -> Iterator[str]:
    """Yield why names cannot be classes': not UTF-8, unprintable, or with spaces around them."""
    for name in folders:
        try:
            name.encode()
        except UnicodeEncodeError:
            yield f"a class folder whose name is not UTF-8: {name!r}, rename it"
            continue
        kinds = {unicodedata.category(c) for c in name} | {unicodedata.bidirectional(c) for c in name}
        if kinds & _UNPRINTABLE or name != name.strip():
            yield f"a class folder with an unprintable name: {name!r}, rename it"


def _note_classes(layout: Layout, folder: Path, found: Mapping[str, list[str]]) -> None:
    """Note what may be meant otherwise: one name in two spellings, and splits inside of classes."""
    if merged := [name for name, spelt in found.items() if len(spelt) > 1]:
        layout.notes.append(
            f"folders whose names are one in two Unicode forms (NFC, NFD) are one class: {some(merged)}"
        )
    folded = Counter(name.casefold() for name in found)
    if alike := [name for name in found if folded[name.casefold()] > 1]:
        layout.notes.append(f"{len(alike)} classes differ only in capital letters: {some(alike)}")
    inside = {below for spelt in found.values() for name in spelt for below in peek(folder / name) or ()}
    if split := sorted(name for name in inside if names.split_of(name)):
        shown = ", ".join(f"{printable(name)}/" for name in split[:3])
        layout.notes.append(
            f"{shown} inside of class folders are no splits; for those, make DATA/train/CLASS and so on"
        )


def _meant_above(folder: Path) -> str:
    """Return a question whether the folder above is meant, if its folders hold photos."""
    above = folder.resolve().parent
    holding = (name for name in peek(above) or () if peek(above / name) is None)
    return f"; did you mean {printable(str(above))}?" if len(list(islice(holding, 2))) == 2 else ""


def meant_below(layout: Layout) -> str:
    """Return a question whether one of the class folders is meant, if they hold class folders themselves."""
    root = layout.folders["train"]
    found = [printable(str(root / name)) for name in layout.labels["train"] if is_data(root / name)]
    return f"did you mean {' or '.join(found[:3])}?" if found else ""
