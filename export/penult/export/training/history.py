"""The history of a run, epoch by epoch, which becomes history.csv."""

import csv
import io
import math
from dataclasses import asdict, astuple, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Epoch:
    """One epoch.

    Attributes:
        learning_rate: The head's rate at the end of the epoch.
        running_loss: The loss with dropout and augmentation; the other losses are measured in eval mode.
        val_loss_error: The standard error of `val_loss`.
    """

    phase: str
    epoch: int
    learning_rate: float
    running_loss: float
    train_loss: float
    val_loss: float
    train_accuracy: float
    val_accuracy: float
    seconds: float
    val_loss_error: float = 0.0


@dataclass
class History:
    """All epochs of a run, in order, and notes for the user.

    `rate_factor` is the factor of `--lr auto` for the given rates.
    """

    epochs: list[Epoch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rate_factor: float = 1.0

    def phase(self, name: str) -> list[Epoch]:
        """Return the epochs of one phase."""
        return [epoch for epoch in self.epochs if epoch.phase == name]

    @property
    def best_loss(self) -> float:
        """The lowest validation loss so far; infinite before the first epoch."""
        return min((epoch.val_loss for epoch in self.epochs), default=math.inf)

    def last_line(self, best: bool) -> str:
        """Return the progress line of the last epoch."""
        e = self.epochs[-1]
        return (
            f"{e.phase:>4} {e.epoch:3d}  train loss {e.train_loss:.3f}  val loss {e.val_loss:.3f}  "
            f"val accuracy {e.val_accuracy:6.1%}  rate {e.learning_rate:.0e}  {e.seconds:.1f} s"
            + ("  best" if best else "")
        )

    def to_csv(self) -> bytes:
        """Return the bytes of history.csv."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([f.name for f in fields(Epoch)])
        writer.writerows(astuple(epoch) for epoch in self.epochs)
        return text.getvalue().encode()

    def to_state(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "History":
        """Rebuild from plain values."""
        return cls([Epoch(**row) for row in state["epochs"]], list(state["notes"]), state["rate_factor"])
