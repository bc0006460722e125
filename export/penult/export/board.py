"""TensorBoard event files, for those who follow several runs there: the only module that knows tensorboardX."""

from pathlib import Path
from types import TracebackType
from typing import Self

from tensorboardX import SummaryWriter

from penult.export.history import Epoch


class Board:
    """Writes each epoch's figures below a folder; without one it does nothing."""

    def __init__(self, folder: Path | None) -> None:
        """Open the event file, if there is a folder."""
        self._writer = SummaryWriter(str(folder)) if folder else None

    def add(self, epoch: Epoch) -> None:
        """Write losses, accuracies and the rate; each phase counts its epochs on its own."""
        if self._writer is None:
            return
        figures = {
            "loss/training": epoch.train_loss, "loss/validation": epoch.val_loss, "loss/running": epoch.running_loss,
            "accuracy/training": epoch.train_accuracy, "accuracy/validation": epoch.val_accuracy,
            "rate/head": epoch.learning_rate, "seconds/epoch": epoch.seconds,
        }  # fmt: skip
        for name, value in figures.items():
            self._writer.add_scalar(f"{epoch.phase}/{name}", value, epoch.epoch)
        self._writer.flush()

    def __enter__(self) -> Self:
        """Use until the run's end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the event file."""
        if self._writer:
            self._writer.close()
