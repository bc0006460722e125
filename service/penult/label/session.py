"""One labelling session: what is labelled, what is shown next, and what the classifier makes of it.

All methods may be called from any thread. Answers are in the label file before a method returns. A thread of its own
fits the classifier after answers, so no answer waits for it.
"""

import threading
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from penult.console import print_error
from penult.export.data.splitting import Photo
from penult.label import views
from penult.label.errors import Conflict, InvalidAnswer, LabelError, LabelFileError
from penult.label.exchange import label_studio_tasks
from penult.label.knowledge import Knowledge, Learning
from penult.label.labels_file import Label, LabelsFile
from penult.label.pool import Pool
from penult.label.strategies import Pick, Situation, choose_apart

# A photo that was handed out and not answered is asked again after this time; a page renews what it still shows.
_HELD_S = 300.0
# Near-copies of the last so many photos that were handed out are not asked next.
_RECENT = 8
_MAX_NAME, _MAX_CLASSES = 100, 1000
GRID = "grid"
_NO_MODEL = {"model": None, "is_running": False, "version": None, "message": ""}


class _Ungiven(Enum):
    """That a page has not said which label it has seen."""

    UNGIVEN = ""


UNGIVEN = _Ungiven.UNGIVEN


@dataclass(frozen=True)
class Answer:
    """An answer for one photo.

    Attributes:
        id: The photo's path below the folder.
        label: Its class; None takes the label back.
        skip: Whether the photo is left for later, without a label.
        was: The label that the page has shown, None for none. If it has changed, the answer is refused.
        kind: How the photo came onto the page, if it was not handed out by next().
        guess: What the page has shown as the guess, likewise.
    """

    id: str
    label: str | None = None
    skip: bool = False
    was: str | _Ungiven | None = UNGIVEN
    kind: str = ""
    guess: str = ""


@dataclass(frozen=True)
class _HandedOut:
    pick: Pick
    guess: str
    until_s: float


class Session:
    """The state between the pages, the label file and the classifier."""

    def __init__(
        self,
        pool: Pool,
        file: LabelsFile,
        classes: Sequence[str] = (),
        seed: int = 0,
        facts: Mapping[str, Any] | None = None,
        publisher: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Continue a label file.

        Args:
            pool: The photos.
            file: The label file, which this session closes.
            classes: Names of classes; those in the file come after them.
            seed: Of random choices.
            facts: Further entries of the state, such as the training command.
            publisher: Makes versions of a model; None if there is none.
            clock: Seconds.
        """
        self.pool, self._file, self._facts, self._publisher, self._clock = pool, file, facts or {}, publisher, clock
        self._rows = {id_: row for row, id_ in enumerate(pool.ids)}
        self._by_content = {photo.sha256: photo for photo in pool.photos}
        self._random = np.random.default_rng(seed)
        self._changed = threading.Condition(threading.RLock())
        self._choosing = threading.Lock()
        self._handed: dict[int, _HandedOut] = {}
        self._recent: list[int] = []
        self._classes: list[str] = []
        self._label_rows: dict[int, int] | None = None
        self._refused = self._unreadable = ""  # what is wrong with the label file, until it works again
        self._is_closed = self._is_fitting = False
        self._revision = 1
        for name in (*classes, *(label.label for label in file.labels.values())):
            self._know(_checked_name(name))
        self._learning = Learning(pool, seed)
        self._thread = threading.Thread(target=self._learn, name="learning", daemon=True)
        self._thread.start()

    # -- what pages ask ------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return counts, the accuracy and its curve, suspects, and what may be done next."""
        with self._changed:
            knowledge, is_behind = self._learning.knowledge, self._learning.is_behind or self._is_fitting
            shown = views.state(
                self._revision, self.pool, self._file, self._classes, self._labels(), self._confirmed(), knowledge,
                is_behind,
            )  # fmt: skip
            publish = self._publisher.state() if self._publisher else _NO_MODEL
            return shown | {"problem": self._unreadable or self._refused, "publish": publish} | dict(self._facts)

    def wait(self, after: int, timeout_s: float) -> dict[str, Any]:
        """Return the state once its revision is above `after`, or after `timeout_s` seconds."""
        end = self._clock() + timeout_s
        with self._changed:
            self._reread()
            while self._revision <= after and not self._is_closed and (left := end - self._clock()) > 0:
                is_publishing = self._publisher is not None and self._publisher.state()["is_running"]
                if not self._changed.wait(min(left, 1.0) if is_publishing else left) and is_publishing:
                    self._revision += 1
            return self.state()

    def next(self, count: int, holding: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Choose the next photos, and hand them out to one page.

        Args:
            count: How many.
            holding: Photos that the page already has. They stay with it.
        """
        with self._choosing:  # one choice at a time, so that two pages get different photos
            with self._changed:
                self._renew(holding)
                situation, asked = self._situation(holding), len(self._labels()) + len(self._handed)
            picks = choose_apart(situation, self._recent, self._random, count, asked)
            with self._changed:
                return [self._hand_out(pick) for pick in picks]

    def learn(self) -> None:
        """Wait until the classifier knows all labels."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or not (self._learning.is_behind or self._is_fitting))

    def grid(self, label: str, count: int) -> list[dict[str, Any]]:
        """Return photos without a label whose guess is `label`, the surest first, to confirm them at once."""
        with self._changed:
            knowledge = self._learning.knowledge
            if label not in self._classes:
                raise InvalidAnswer("CLASS", f"there is no class {label!r}; reload the page")
            if knowledge.fit is None:
                return []
            rows = views.surest(knowledge, self._classes.index(label), self._open(set(self._handed)), count)
            return [self._item(Pick(row, GRID, f"looks like {label}"), with_neighbours=False) for row in rows]

    def neighbours(self, id_: str, count: int) -> list[dict[str, Any]]:
        """Return the labelled photos nearest to one."""
        with self._changed:
            return views.neighbours(self.pool, self._learning.knowledge, self._row(id_), count, self._classes)

    def label_studio(self) -> bytes:
        """Return labels, and guesses for the other photos, as JSON that Label Studio imports."""
        with self._changed:
            guesses = views.guesses(self.pool, self._learning.knowledge, self._classes)
            return label_studio_tasks(self._file, self.pool.root, self.pool.ids, guesses, self.pool.network)

    def photo_of(self, sha256: str) -> Photo | None:
        """Return a photo by the SHA-256 (hex) of its bytes, None if it is not one of them."""
        return self._by_content.get(sha256)

    # -- what pages say ------------------------------------------------------------------------------------------------

    def answer(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Write answers to the label file, and return the state. Labels are written first, all or none of them.

        Raises:
            InvalidAnswer: There is no such photo, or a name cannot be a class.
            Conflict: The photo's label is not the one that the page has shown.
            LabelFileError: The file cannot be written. What it has then is in the state.
        """
        with self._changed:
            self._reread()
            labels = [self._checked(answer) for answer in answers]
            gone = [answer.id for answer in answers if answer.label is None and not answer.skip]
            skipped = [answer.id for answer in answers if answer.skip]
            try:
                if given := [label for label in labels if label]:
                    self._file.put(given)
                if gone:
                    self._file.take_back(gone)
                if skipped:
                    self._file.skip(skipped)
            except LabelFileError as error:
                self._refused = error.message
                self._take_over()
                raise
            self._refused = ""
            self._reread()  # another program may have written just before
            for answer in answers:
                self._handed.pop(self._rows[answer.id], None)
            self._take_over()
            return self.state()

    def add_class(self, name: str) -> dict[str, Any]:
        """Add a class, and return the state; raise InvalidAnswer if the name cannot be a class."""
        with self._changed:
            self._know(_checked_name(name))
            self._announce()
            return self.state()

    def publish(self) -> dict[str, Any]:
        """Begin to publish the next version of the model, and return the state; raise LabelError if there is none."""
        with self._changed:
            if self._publisher is None:
                raise LabelError("NO_MODEL", "no model is named; start penult label with --publish models/NAME")
            self._publisher.start()
            self._announce()
            return self.state()

    def close(self) -> None:
        """End learning and publishing, and close the file."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            if self._publisher:
                self._publisher.stop()
            self._file.close()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        self._revision += 1
        self._changed.notify_all()

    def _know(self, name: str) -> None:
        if name not in self._classes:
            if len(self._classes) >= _MAX_CLASSES:
                raise InvalidAnswer("CLASS", f"{_MAX_CLASSES} classes are the most; take another class")
            self._classes.append(name)

    def _take_over(self) -> None:
        """Follow the label file, whose labels may have changed."""
        for label in self._file.labels.values():
            self._know(label.label)
        self._label_rows = None
        self._learning.is_behind = True
        self._announce()

    def _reread(self) -> None:
        """Take over what another program has written to the label file."""
        try:
            if self._file.refresh():
                self._take_over()
            problem = ""
        except LabelFileError as error:
            problem = error.message
        if problem != self._unreadable:
            self._unreadable = problem
            self._announce()

    def _row(self, id_: str) -> int:
        row = self._rows.get(id_)
        if row is None:
            raise InvalidAnswer(
                "PHOTO", f"there is no photo {id_[:200]!r} in the folder; give its path below the folder"
            )
        return row

    def _checked(self, answer: Answer) -> Label | None:
        """Return what to write for an answer, None if it is no label."""
        row = self._row(answer.id)
        now = self._file.labels.get(answer.id)
        if answer.was is not UNGIVEN and answer.was != (now.label if now else None):
            raise Conflict(answer.id, now.label if now else None)
        if answer.label is None or answer.skip:
            return None
        name = _checked_name(answer.label)
        if name not in self._classes and len(self._classes) >= _MAX_CLASSES:
            raise InvalidAnswer("CLASS", f"{_MAX_CLASSES} classes are the most; take another class")
        handed = self._handed.get(row)
        picked = handed.pick.kind if handed else answer.kind or (now.picked if now else "")
        if now and now.label == name:  # the suspect is confirmed
            picked = views.CONFIRMED
        return Label(answer.id, name, picked, handed.guess if handed else answer.guess)

    def _labels(self) -> dict[int, int]:
        """Return the class of each labelled photo, by their rows, in the order of the answers."""
        if self._label_rows is None:
            places = {name: place for place, name in enumerate(self._classes)}
            known = ((self._rows.get(id_), label) for id_, label in self._file.labels.items())
            self._label_rows = {row: places[label.label] for row, label in known if row is not None}
        return self._label_rows

    def _open(self, held: set[int]) -> np.ndarray[Any, np.dtype[np.intp]]:
        """Return the photos that may be asked: without a label, not skipped unless only such are left, not held."""
        labelled, skipped = np.zeros((2, len(self.pool.ids)), dtype=bool)
        labelled[[*self._labels(), *held]] = True
        skipped[[self._rows[id_] for id_ in self._file.skipped if id_ in self._rows]] = True
        rows = np.flatnonzero(~labelled & ~skipped)
        return rows if len(rows) else np.flatnonzero(~labelled)

    def _situation(self, holding: Sequence[str]) -> Situation:
        now = self._clock()
        self._handed = {row: each for row, each in self._handed.items() if each.until_s > now}
        held = self._handed.keys() | {self._rows[id_] for id_ in holding if id_ in self._rows}
        rows = self._open(held)
        labels = self._labels()
        return Situation(
            inputs=self.pool.inputs,
            groups=self.pool.groups,
            rows=np.array(list(labels), dtype=np.intp),
            labels=np.array(list(labels.values()), dtype=np.int64),
            classes=tuple(self._classes),
            fit=self._learning.knowledge.fit,
            open=rows,
            checked=frozenset(self._confirmed() | held),
        )

    def _confirmed(self) -> set[int]:
        """Return the labelled photos whose label was confirmed."""
        known = ((self._rows.get(id_), label) for id_, label in self._file.labels.items())
        return {row for row, label in known if row is not None and label.picked == views.CONFIRMED}

    def _renew(self, holding: Sequence[str]) -> None:
        until = self._clock() + _HELD_S
        for id_ in holding:
            row = self._rows.get(id_)
            if row is not None and row in self._handed:
                handed = self._handed[row]
                self._handed[row] = _HandedOut(handed.pick, handed.guess, until)

    def _hand_out(self, pick: Pick) -> dict[str, Any]:
        item = self._item(pick)
        self._handed[pick.row] = _HandedOut(pick, item["guess"] or "", self._clock() + _HELD_S)
        self._recent = [*self._recent[1 - _RECENT :], pick.row]
        return item

    def _item(self, pick: Pick, with_neighbours: bool = True) -> dict[str, Any]:
        now = self._file.labels.get(self.pool.ids[pick.row])
        label = now.label if now else None
        return views.item(self.pool, self._learning.knowledge, self._classes, pick, label, with_neighbours)

    def _learn(self) -> None:
        """Fit again whenever there are answers that the classifier does not know yet."""
        while True:
            with self._changed:
                while not (self._learning.is_behind or self._is_closed):
                    self._changed.wait()
                if self._is_closed:
                    return
                labels = self._labels()
                classes = len(self._classes)
                self._learning.is_behind, self._is_fitting = False, True
            try:
                knowledge: Knowledge | None = self._learning.fit(labels, classes)
            except Exception as error:  # the page goes on without guesses; the label file is what counts
                knowledge = None
                print_error(f"the classifier could not be fitted ({type(error).__name__}: {error}); labels are kept")
            with self._changed:
                self._is_fitting = False
                if knowledge is not None:
                    self._learning.knowledge = knowledge
                self._announce()


def _checked_name(name: str) -> str:
    """Return a class name in NFC without blanks around it; raise InvalidAnswer if it cannot be one."""
    name = unicodedata.normalize("NFC", name).strip()
    if not name or len(name) > _MAX_NAME or not name.isprintable():
        raise InvalidAnswer("CLASS", f"a class name has 1 to {_MAX_NAME} printable characters; {name[:40]!r} has not")
    return name
