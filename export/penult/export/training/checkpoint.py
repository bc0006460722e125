"""A run's state after every epoch, so that `--resume` goes on as if nothing had happened."""

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

NOTHING_TO_RESUME = "--resume: nothing is left of a run that was cut off, so this one starts from the beginning"


class Checkpoint:
    """The file behind `--resume`; without that option an old one is ignored and overwritten."""

    def __init__(self, path: Path, settings: TrainSettings, data_sha256: str, workers: ProcessGroup = ALONE) -> None:
        """Load the file if the run resumes; raise SettingsError if it belongs to another run.

        The first process reads and writes it; the others are told, for they may have other disks.
        """
        self.path, self._workers = path, workers
        self.identity = json.dumps([settings.as_json(), data_sha256], sort_keys=True)
        self.state: dict[str, Any] | None = None
        self.phase = 0
        self.history = History()
        if settings.resume:
            self.state = workers.same(self._read() if workers.is_first and path.is_file() else None)
        if self.state:
            self.phase = self.state["phase"]
            self.history = History.from_state(self.state["history"])

    def _read(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises whatever zipfile, pickle or its own reader does
            raise SettingsError(
                "RESUME", f"--resume: {self.path} is damaged; remove it, or leave --resume out, to start anew"
            ) from error
        if state["identity"] != self.identity:
            raise SettingsError(
                "RESUME",
                "--resume: the interrupted run had other settings or photos; repeat those, or leave --resume out",
            )
        return state

    def finished(self, phase: int) -> bool:
        """Whether the interrupted run was past this phase."""
        return self.state is not None and phase < self.phase

    def is_within(self, phase: int) -> bool:
        """Whether the interrupted run had begun this phase."""
        return self.state is not None and phase == self.phase and "optimizer" in self.state

    def restore(
        self, phase: int, optimizer: torch.optim.Optimizer, schedule: Schedule, scaler: torch.amp.GradScaler
    ) -> Weights | None:
        """Put optimizer, schedule and loss scale back where they were in this phase; return the best weights so far."""
        if not self.is_within(phase):
            return None
        assert self.state is not None  # for the type checker: asked above
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
        """Write the state after an epoch; raise DiskError, with the last one kept, where the disk refuses."""
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

    def remove(self) -> None:
        """Forget the run: its bundle is published."""
        if not self._workers.is_first:
            return
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not there, or somebody keeps something else in it
            self.path.parent.rmdir()

    def _write(self, state: dict[str, Any]) -> None:
        if not self._workers.is_first:
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
                with contextlib.suppress(OSError):  # half of it only takes up what is short
                    scratch.unlink()
                raise
