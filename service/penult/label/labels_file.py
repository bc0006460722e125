"""The label file: every answer is on the disk before it is acknowledged, and what others write there stays.

The format is that of `penult train DATA`: the columns image and label, and any others. Rows, values, order and spelling
of an existing file stay as they are. A new label is appended; a changed one rewrites the file under a temporary name.
"""

import os
import stat
import threading
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from penult.bundle.refusals import why
from penult.export.data.layout import is_printable_name
from penult.export.data.tables import IMAGE, LABEL
from penult.folders.names import printable
from penult.label import disk
from penult.label.errors import LabelFileError
from penult.label.label_paths import LabelPaths, can_be_written
from penult.label.label_table import GUESS, PICKED, Cells, Table, new_table, parse, shown
from penult.label.side_file import SideFile

_SUFFIXES = (".csv", ".tsv")
# Another program may be writing: the file is read when it stays the same for this long.
_SETTLED_S = 0.05
_READS = 40


@dataclass(frozen=True)
class Label:
    """A label of an image.

    Attributes:
        image: The path below the labelled folder, with "/".
        label: The class.
        picked: Why the image was asked, the kind of its Pick; "" if unknown.
        guess: What the model said before; "" if nothing.
    """

    image: str
    label: str
    picked: str = ""
    guess: str = ""


@dataclass
class _Content:
    """What is in the file: its text, and where each image is."""

    table: Table
    paths: LabelPaths
    labels: dict[str, Label] = field(default_factory=dict)
    places: dict[str, list[int]] = field(default_factory=dict)
    without_label: set[str] = field(default_factory=set)
    outside: int = 0


class LabelsFile:
    """A label file that is open, in this process alone. Threads may share it.

    Attributes:
        path: The file as it was given.
        notes: What to report after opening and after others' changes, a line each. The caller may clear it.
    """

    def __init__(self, path: Path, root: Path | None = None) -> None:
        """Open or create the file, and take its lock.

        Args:
            path: A file that ends in .csv or .tsv.
            root: The labelled folder, below which images are named; None: the file's folder.

        Raises:
            LabelFileError: The file cannot be read or written, or another process has it open. Nothing has changed.
        """
        self.path, self._root = path, root or path.parent
        self._file = Path(os.path.realpath(path))
        self.notes: list[str] = []
        self._mutex = threading.RLock()
        self._has_changed = False
        # For each image answered here: the label before, and now. Another program may save what it read before that.
        self._ours: dict[str, tuple[Label | None, Label | None]] = {}
        self._check_kind()
        with self._writing():
            self._side = SideFile(self._file)
            try:
                self._open()
            except BaseException:
                self._side.close()
                raise

    @property
    def labels(self) -> Mapping[str, Label]:
        """The label of each image below the labelled folder, in order of the file."""
        return MappingProxyType(self._content.labels)

    @property
    def skipped(self) -> Set[str]:
        """The images that were left and have no label."""
        return self._side.skipped - self._content.labels.keys()

    @property
    def train_arguments(self) -> list[str]:
        """What `penult train` takes to read this file: its path, and --images if it is needed."""
        return [str(self.path)] if self._content.paths.is_own else [str(self.path), "--images", str(self._root)]

    def others(self, image: str) -> dict[str, str]:
        """Return what a labelled image has in other columns of the file, such as split and group."""
        places = self._content.places.get(image, [])
        return self._content.table.others(self._content.table.rows[places[0]]) if places else {}

    def put(self, labels: Sequence[Label]) -> None:
        """Write labels, and return when they are on the disk.

        A new image is appended. A changed one rewrites the file. An empty `picked` or `guess` leaves what is there. A
        label given for a skipped image ends the skipping.

        Raises:
            LabelFileError: Nothing has changed, in memory or on the disk.
        """
        wanted = {label.image: label for label in map(_checked, labels)}
        with self._mutex, self._writing():
            self._catch_up()
            changes: dict[str, Label | None] = {}
            for image, label in wanted.items():
                old = self._content.labels.get(image)
                new = (
                    replace(label, picked=label.picked or old.picked, guess=label.guess or old.guess) if old else label
                )
                if new != old:
                    changes[image] = new
            self._change(changes, opened=wanted)

    def take_back(self, images: Sequence[str]) -> None:
        """Remove the labels of images, and end skipping them; on the disk at return. Raises LabelFileError as put()."""
        with self._mutex, self._writing():
            self._catch_up()
            self._change({image: None for image in images if image in self._content.labels}, opened=images)

    def skip(self, images: Sequence[str]) -> None:
        """Note that images are left; on the disk at return. Images with a label keep it. Raises as put()."""
        with self._mutex, self._writing():
            left = [each for each in dict.fromkeys(images) if each not in self._side.skipped]
            self._side.add({"image": each, "skipped": True} for each in left)

    def refresh(self) -> bool:
        """Read the file again if another program has changed it.

        Its rows replace those that were read. Answers given here that it does not know, because it had read the file
        before them, are written into its file again.

        Returns:
            True if labels have changed by that since the last call, in put() too.

        Raises:
            LabelFileError: The file is damaged or contradicts itself; nothing is overwritten.
        """
        with self._mutex, self._writing():
            self._catch_up()
            has_changed, self._has_changed = self._has_changed, False
            return has_changed

    def close(self) -> None:
        """Release the lock."""
        self._side.close()

    # -- opening and reading -------------------------------------------------------------------------------------------

    def _check_kind(self) -> None:
        name = printable(str(self.path))
        if self.path.suffix.lower() not in _SUFFIXES:
            raise LabelFileError("LABEL_FILE", f"{name} does not end in .csv or .tsv; name a file such as labels.csv")
        if not self._file.parent.is_dir():
            raise LabelFileError("LABEL_FILE", f"the folder of {name} does not exist; create it, or name another")
        if self._file.exists() and not stat.S_ISREG(self._file.stat().st_mode):
            raise LabelFileError("LABEL_FILE", f"{name} is no file; name another")

    def _open(self) -> None:
        if not self._side.has_lock:
            self.notes.append("the file system has no locks; do not open the label file in a second penult label")
        if not self._file.exists() or not self._file.stat().st_size:
            disk.replace(self._file, new_table(self.path).data({}, []))
        os.close(os.open(self._file, os.O_WRONLY | os.O_APPEND))  # raises if it may not be written
        self._folder = disk.state_of(self._file.parent)[:2]
        self._content, self._state = self._read()
        disk.scratch_of(self._file).unlink(missing_ok=True)
        if outside := self._content.outside:
            self.notes.append(f"{outside} rows of {self.path.name} name images outside of the folder; they stay")
        if without := len(self._content.without_label):
            self.notes.append(f"{without} rows of {self.path.name} have no label; penult train needs one in each")

    def _read(self) -> tuple[_Content, disk.State]:
        """Read the file, and remove a row that was cut off."""
        state = disk.state_of(self._file)
        content = self._parsed(self._file.read_bytes())
        if torn := content.table.torn:
            disk.truncate(self._file, len(content.table.data({}, [])))
            state = disk.state_of(self._file)
            self.notes.append(
                f"the last row of {self.path.name} was cut off and is removed, {shown(torn)!r}; label that image again"
            )
        return content, state

    def _read_others(self) -> tuple[_Content, disk.State]:
        """Read what another program has written, when it is done; a row that is cut off is an error."""
        name = printable(str(self.path))
        for _ in range(_READS):
            state = disk.state_of(self._file)
            data = self._file.read_bytes()
            time.sleep(_SETTLED_S)
            if disk.state_of(self._file) == state:
                break
        else:
            raise LabelFileError("LABEL_FILE", f"another program is writing {name}; wait until it is done")
        content = self._parsed(data)
        if torn := content.table.torn:
            raise LabelFileError("LABEL_FILE", f"the last row of {name} is cut off, {shown(torn)!r}; complete it")
        return content, state

    def _parsed(self, data: bytes) -> _Content:
        table, rows = parse(self.path, data, self._is_cut)
        images = [cells.image for cells in rows if cells]
        content = _Content(table, LabelPaths(self._root, self.path.parent, images))
        for place, cells in enumerate(rows):
            if cells:
                self._add(content, place, cells)
        return content

    def _is_cut(self, cells: Cells) -> bool:
        written = self._side.notes.get(cells.image, {}).get("label", "")
        return written != cells.label and written.startswith(cells.label)

    def _add(self, content: _Content, place: int, cells: Cells) -> None:
        image = content.paths.id_of(cells.image)
        if image is None:
            content.outside += 1
            return
        places = content.places.setdefault(image, [])
        places.append(place)
        if not cells.label:
            content.without_label.add(image)
        elif image in content.labels and content.labels[image].label != cells.label:
            raise LabelFileError(
                "LABEL_FILE",
                f"{printable(str(self.path))}, row {cells.number}: {printable(cells.image)} has two labels, "
                f"{cells.label!r} and {content.labels[image].label!r}; keep the correct row",
            )
        elif image not in content.labels:
            note = self._side.notes.get(image, {})
            picked, guess = cells.picked or note.get(PICKED, ""), cells.guess or note.get(GUESS, "")
            content.labels[image] = Label(image, cells.label, picked, guess)

    # -- other programs ------------------------------------------------------------------------------------------------

    def _catch_up(self) -> None:
        """Read what another program has written, and write again which of our answers it lacks."""
        try:
            if disk.state_of(self._file) == self._state:
                return
        except FileNotFoundError:
            self._restore()
            return
        before = self._content, self._state
        self._content, self._state = self._read_others()
        lost: dict[str, Label | None] = {}
        for image, (old, new) in list(self._ours.items()):
            theirs = self._content.labels.get(image)
            if (theirs and theirs.label) == (new and new.label):
                continue
            if (theirs and theirs.label) == (old and old.label):
                lost[image] = new
            else:
                del self._ours[image]
        try:
            self._change(lost)
        except BaseException:
            self._content, self._state = before
            raise
        again = f"; {len(lost)} answers that it lacked were written again" if lost else ""
        self.notes.append(f"another program has changed {self.path.name}{again}")
        self._has_changed |= before[0].labels != self._content.labels

    def _restore(self) -> None:
        """Write the file again after it was deleted, unless its folder is another one now, as after unmounting."""
        if disk.state_of(self._file.parent)[:2] != self._folder:
            raise FileNotFoundError(2, "The folder was replaced")
        self._state = disk.replace(self._file, self._content.table.data({}, []))
        self.notes.append(f"{self.path.name} was deleted, and is written again")

    # -- writing -------------------------------------------------------------------------------------------------------

    def _change(self, changes: Mapping[str, Label | None], opened: Sequence[str] | Mapping[str, Label] = ()) -> None:
        """Write labels, or remove those that are None; images in `opened` are skipped no longer."""
        content = self._content
        edits: dict[int, str] = {}
        added: dict[str, str] = {}
        for image, label in changes.items():
            places = content.places.get(image, [])
            for place in places:
                edits[place] = self._edited(image, content.table.rows[place], label)
            if label and not places:
                values = {**self._side.rows.get(image, {}), **_values(label), IMAGE: content.paths.spelt(image)}
                added[image] = content.table.row(values)
        self._side.add(self._records(changes, opened))
        if edits:
            self._state = disk.replace(self._file, content.table.data(edits, list(added.values())))
        elif added:
            self._append(list(added.values()))
        self._remember(changes, edits, added)
        if added and disk.state_of(self._file) != self._state:
            self._catch_up()  # it was replaced while we appended

    def _append(self, rows: list[str]) -> None:
        state = disk.append(self._file, self._content.table.appended(rows), self._state)
        if state is None:
            raise LabelFileError("LABEL_FILE", f"another program is writing {self.path.name}; answer again")
        self._state = state

    def _edited(self, image: str, row: str, label: Label | None) -> str:
        table = self._content.table
        if label:
            return table.row(_values(label), row)
        return table.row({LABEL: "", PICKED: "", GUESS: ""}, row) if image in self._content.without_label else ""

    def _records(
        self, changes: Mapping[str, Label | None], opened: Sequence[str] | Mapping[str, Label]
    ) -> Iterator[dict[str, object]]:
        """Yield what the side file must hold before the label file changes."""
        columns, content = self._content.table.columns, self._content
        needs_note = not {PICKED, GUESS} <= set(columns) or columns[-1] == LABEL
        for image in opened:
            if image in self._side.skipped:
                yield {"image": image, "skipped": False}
        for image, label in changes.items():
            if label and needs_note:
                yield {"image": image, LABEL: label.label, PICKED: label.picked, GUESS: label.guess}
            if not label and image not in content.without_label:
                for place in content.places[image]:
                    if others := content.table.others(content.table.rows[place]):
                        yield {"image": image, "row": others}

    def _remember(
        self, changes: Mapping[str, Label | None], edits: Mapping[int, str], added: Mapping[str, str]
    ) -> None:
        content = self._content
        table = content.table
        table.needs_end = table.needs_end and not changes
        for place, row in edits.items():
            table.rows[place] = row
        for image, row in added.items():
            content.places[image] = [len(table.rows)]
            table.rows.append(row)
        for image, label in changes.items():
            old = content.labels.get(image)
            first, _ = self._ours.get(image, (old, None))
            self._ours[image] = (first, label)
            if label:
                content.labels[image] = label
            else:
                content.labels.pop(image, None)
                if image not in content.without_label:
                    del content.places[image]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LabelFileError(
                "LABEL_FILE_UNWRITABLE", f"cannot write {printable(str(self.path))}: {why(error)}"
            ) from error


def _values(label: Label) -> dict[str, str]:
    return {LABEL: label.label, PICKED: label.picked, GUESS: label.guess}


def _checked(label: Label) -> Label:
    """Return a label in NFC; raise LabelFileError for what a label file cannot hold."""
    name = unicodedata.normalize("NFC", label.label).strip()
    if not name or not is_printable_name(name):
        raise LabelFileError("LABEL", f"the label {label.label!r} is empty or unprintable; give another")
    if not can_be_written(label.image):
        raise LabelFileError("LABEL", f"the file name {printable(label.image)} is not UTF-8; rename the file")
    return replace(label, label=name)
