"""Save the state of a run after every epoch, so that `--resume` gives the same weights as an unbroken run."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from penult.export.config.train import TrainSettings
from penult.export.disk import writing
from penult.export.errors import SettingsError
from penult.export.networks.network import Weights
from penult.export.training.distributed import ALONE, ProcessGroup
from penult.export.training.history import History
from penult.export.training.schedule import Schedule

NOTHING_TO_RESUME = "--resume: there is no interrupted run to resume, so this one starts from the beginning"


def run_identity(settings: TrainSettings, data_sha256: str) -> list[Any]:
    """Return what two runs must have in common for one to resume the other."""
    return [settings.as_json(), data_sha256]


class Checkpoint:
    """The file that `--resume` reads; without that option an old one is ignored and overwritten."""

    def __init__(self, path: Path, identity: list[Any], resume: bool, processes: ProcessGroup = ALONE) -> None:
        """Load the file if the run resumes; raise SettingsError if it belongs to another run.

        The first process reads and writes the file and sends it to the others, which may have other disks.
        """
        self.path = path
        self._processes = processes
        self.identity = json.dumps(identity, sort_keys=True)
        self.state: dict[str, Any] | None = None
        self.phase = 0
        self.history = History()
        if resume:
            self.state = processes.same(self._read() if processes.is_first and path.is_file() else None)
        if self.state:
            self.phase = self.state["phase"]
            self.history = History.from_state(self.state["history"])

    def _read(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises whatever zipfile, pickle or its own reader does
            raise SettingsError(
                "RESUME", f"--resume: {self.path} is damaged; remove it or omit --resume to start again"
            ) from error
        if state["identity"] != self.identity:
            raise SettingsError(
                "RESUME",
                "--resume: the interrupted run had other settings or photos; repeat those, or omit --resume",
            )
        return state

    def finished(self, phase: int) -> bool:
        """Return True if the interrupted run had finished this phase."""
        return self.state is not None and phase < self.phase

    def is_within(self, phase: int) -> bool:
        """Return True if the interrupted run was cut off within this phase."""
        return self.state is not None and phase == self.phase and "optimizer" in self.state

    def restore(
        self, phase: int, optimizer: torch.optim.Optimizer, schedule: Schedule, scaler: torch.amp.GradScaler
    ) -> Weights | None:
        """Restore optimizer, schedule and loss scale of this phase; return its best weights if it had begun."""
        if not self.is_within(phase):
            return None
        assert self.state is not None  # is_within() has checked it
        optimizer.load_state_dict(self.state["optimizer"])
        schedule.load_state_dict(self.state["schedule"])
        scaler.load_state_dict(self.state["scaler"])
        best: Weights = self.state["best"]
        return best

    def save(
        self,
        phase: int,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        scaler: torch.amp.GradScaler,
        best: Weights,
        history: History,
    ) -> None:
        """Write the state after an epoch; raise DiskError, with the previous file kept, if it cannot be written."""
        self._write(
            {
                "phase": phase,
                "net": net.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "scaler": scaler.state_dict(),
                "best": best,
                "history": history.to_state(),
            }
        )

    def save_finished(self, phase: int, net: nn.Module, history: History) -> None:
        """Write the state between two phases."""
        self._write({"phase": phase + 1, "net": net.state_dict(), "history": history.to_state()})

    @staticmethod
    def remove(path: Path) -> None:
        """Delete the file of a run whose bundle is published, and its folder if that is empty."""
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # absent or not empty
            path.parent.rmdir()

    def _write(self, state: dict[str, Any]) -> None:
        if not self._processes.is_first:
            return
        scratch = self.path.with_suffix(".tmp")
        with writing(self.path):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(scratch, "wb") as file:
                    torch.save(state | {"identity": self.identity}, file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(scratch, self.path)
            except (OSError, RuntimeError):
                with contextlib.suppress(OSError):  # an incomplete file only takes up space
                    scratch.unlink()
                raise
