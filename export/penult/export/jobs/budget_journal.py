"""What a run under `--budget` has tried, and when: kept on the disk, so that --resume repeats none of it.

The first process keeps the journal and the clock, and sends both to the others.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from penult.bundle.scores import wilson
from penult.console import say
from penult.export.disk import writing
from penult.export.errors import SettingsError
from penult.export.training.checkpoint import NOTHING_TO_RESUME
from penult.export.training.distributed import ProcessGroup
from penult.export.training.pace import Round

RANKING, SIZE, COPIES, VIEWS, FROZEN, TRIAL, FINAL = (
    "ranking", "size", "copies", "views", "frozen", "trial", "final training",
)  # fmt: skip


@dataclass(frozen=True)
class Tried:
    """One thing that was tried.

    Attributes:
        stage: RANKING, SIZE, COPIES, VIEWS, FROZEN, TRIAL or FINAL.
        what: What is special about it, in words.
        photos: How many photos were held out.
        accuracy: Of the SVM in cross-validation, or on validation photos.
        loss: Of the dense head on validation photos; None if it was not measured.
        lead: Accuracy, or fall of the loss, against what it was compared with; None if it was compared with nothing.
        lead_error: The standard error of that.
        epochs: Of the fine-tuning.
        at_s: Seconds of the budget when it began.
        seconds: How long it took.
        more: What later decisions need.
    """

    stage: str
    arch: str
    what: str
    photos: int
    accuracy: float
    loss: float | None = None
    lead: float | None = None
    lead_error: float | None = None
    epochs: float = 0
    at_s: float = 0.0
    seconds: float = 0.0
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy."""
        return wilson(self.accuracy, self.photos)

    @property
    def is_better(self) -> bool:
        """True if it leads by more than the standard error."""
        return self.lead is not None and self.lead > (self.lead_error or 0.0)


class Journal:
    """Keeps what was tried, the time spent, and what was decided."""

    def __init__(self, folder: Path, identity: list[Any], processes: ProcessGroup, began: float, resume: bool) -> None:
        """Read the journal of an interrupted run, if `resume` and there is one.

        Args:
            folder: Where it is kept.
            identity: What two runs must have in common for one to resume the other.
            processes: The processes of the run.
            began: When this process began, by time.monotonic().
            resume: Whether to continue.

        Raises:
            SettingsError: The interrupted run had other settings or photos.
        """
        self.path = folder / "journal.json"
        self.processes = processes
        self._began = began
        self._identity = json.loads(json.dumps(identity))
        state = processes.same(self._read(resume) if processes.is_first else {})
        self._spent_s = float(state.get("spent_s", 0.0))
        self.stages: dict[str, tuple[Tried, ...]] = {
            key: tuple(Tried(**each) for each in tried) for key, tried in state.get("stages", {}).items()
        }
        # What was decided or measured, by name.
        self.facts: dict[str, Any] = state.get("facts", {})

    def _read(self, resume: bool) -> dict[str, Any]:
        if not resume:
            return {}
        try:
            state: dict[str, Any] = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            say(NOTHING_TO_RESUME)
            return {}
        if state["identity"] != self._identity:
            raise SettingsError(
                "RESUME",
                "--resume: the interrupted run had another budget, other settings or photos; repeat those, or omit "
                "--resume",
            )
        say(f"resuming after {len(state['stages'])} steps and {state['spent_s']:.0f} s")
        return state

    @property
    def tried(self) -> tuple[Tried, ...]:
        """All that was tried, in order."""
        return tuple(each for tried in self.stages.values() for each in tried)

    def now_s(self) -> float:
        """Return the seconds of the budget that are spent, by the clock of the first process, in every process."""
        return self.processes.same(self._spent_s + time.monotonic() - self._began)

    def stage(self, key: str, work: Callable[[], Sequence[Tried]]) -> tuple[Tried, ...]:
        """Return what a stage found: from the journal, or from `work`, which every process runs."""
        if key not in self.stages:
            found = self.processes.same(tuple(work()))
            self.stages[key] = found
            self.save()
        return self.stages[key]

    def fact(self, name: str, work: Callable[[], Any]) -> Any:
        """Return a decision or measurement: from the journal, or from `work`, which every process runs."""
        if name not in self.facts:
            self.note(name, self.processes.same(work()))
        return self.facts[name]

    def note(self, name: str, value: Any) -> None:
        """Keep a decision or measurement."""
        self.facts[name] = value
        self.save()

    def decide(self, sentence: str) -> None:
        """Keep and print a decision, once."""
        if sentence not in self.decisions:
            say(sentence)
            self.note("decisions", [*self.decisions, sentence])

    @property
    def decisions(self) -> list[str]:
        """What was decided, in sentences."""
        return list(self.facts.get("decisions", ()))

    def rounds(self) -> tuple[Round, ...]:
        """Return the rounds of the final training."""
        return tuple(Round(**each) for each in self.facts.get("rounds", ()))

    def save(self) -> None:
        """Write the journal; raise DiskError if it cannot be written."""
        if not self.processes.is_first:
            return
        state = {
            "identity": self._identity,
            "spent_s": round(self._spent_s + time.monotonic() - self._began, 3),
            "stages": {key: [asdict(each) for each in tried] for key, tried in self.stages.items()},
            "facts": self.facts,
        }
        scratch = self.path.with_suffix(".tmp")
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(json.dumps(state, indent=1))
            scratch.replace(self.path)
