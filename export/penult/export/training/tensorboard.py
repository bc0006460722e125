"""Write TensorBoard event files. Only this module imports tensorboardX."""

import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from penult.export.disk import writing
from penult.export.training.history import Epoch


class TensorBoardWriter:
    """Writes the figures of each epoch below a folder; without a folder it does nothing. Raises DiskError.

    tensorboardX's SummaryWriter writes on a thread and at exit, where a full disk ends in a traceback.
    """

    def __init__(self, folder: Path | None) -> None:
        """Open the event file, if there is a folder."""
        self._folder = folder
        if folder:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                self._writer = EventsWriter(str(folder / "events"))

    def add(self, epoch: Epoch) -> None:
        """Write losses, accuracies and the rate; epochs are counted per phase."""
        if self._folder is None:
            return
        figures = {
            "loss/training": epoch.train_loss,
            "loss/validation": epoch.val_loss,
            "loss/running": epoch.running_loss,
            "accuracy/training": epoch.train_accuracy,
            "accuracy/validation": epoch.val_accuracy,
            "rate/head": epoch.learning_rate,
            "seconds/epoch": epoch.seconds,
        }
        with writing(self._folder):
            for name, value in figures.items():
                summary = scalar(f"{epoch.phase}/{name}", value)
                self._writer.write_event(Event(wall_time=time.time(), step=epoch.epoch, summary=summary))
            self._writer.flush()

    def __enter__(self) -> Self:
        """Use until the run's end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the event file; every epoch is in it already."""
        if self._folder:
            with suppress(OSError):  # if an epoch could not be written, an error was raised before
                self._writer.close()
