"""A run's state after every epoch, so that `--resume` goes on as if nothing had happened."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from penult.export.errors import SettingsError
from penult.export.history import History
from penult.export.model import Weights
from penult.export.settings import TrainSettings
from penult.export.stopping import EarlyStopping


class Checkpoint:
    """The file behind `--resume`; without that option an old one is ignored and overwritten."""

    def __init__(self, path: Path, settings: TrainSettings, data_sha256: str) -> None:
        """Load the file if the run resumes; raise SettingsError if it belongs to another run."""
        self.path = path
        self.identity = json.dumps([settings.as_json(), data_sha256], sort_keys=True)
        self.state: dict[str, Any] | None = None
        self.phase = 0
        self.history = History()
        if settings.resume and path.is_file():
            self._load()

    def _load(self) -> None:
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises whatever zipfile, pickle or its own reader does
            raise SettingsError(
                "RESUME", f"--resume: {self.path} is damaged; remove it, or leave --resume out, to start anew"
            ) from error
        if state["identity"] != self.identity:
            raise SettingsError(
                "RESUME",
                "--resume: the interrupted run had other settings or photos; repeat those, or leave --resume out",
            )
        self.state, self.phase = state, state["phase"]
        self.history = History.from_list(state["history"])

    def finished(self, phase: int) -> bool:
        """Whether the interrupted run was past this phase."""
        return self.state is not None and phase < self.phase

    def restore(
        self, phase: int, optimizer: torch.optim.Optimizer, plateau: Any, stopping: EarlyStopping
    ) -> Weights | None:
        """Put optimizer, schedule and stopping back where they were in this phase; return the best weights so far."""
        if self.state is None or phase != self.phase or "optimizer" not in self.state:
            return None
        optimizer.load_state_dict(self.state["optimizer"])
        plateau.load_state_dict(self.state["plateau"])
        vars(stopping).update(self.state["stopping"])
        best: Weights = self.state["best"]
        return best

    def save(
        self,
        phase: int,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        plateau: Any,
        stopping: EarlyStopping,
        best: Weights,
        history: History,
    ) -> None:
        """Write the state after an epoch."""
        self._write(
            {
                "phase": phase,
                "net": net.state_dict(),
                "optimizer": optimizer.state_dict(),
                "plateau": plateau.state_dict(),
                "stopping": vars(stopping),
                "best": best,
                "history": history.to_list(),
            }
        )

    def save_finished(self, phase: int, net: nn.Module, history: History) -> None:
        """Write the state between two phases."""
        self._write({"phase": phase + 1, "net": net.state_dict(), "history": history.to_list()})

    def remove(self) -> None:
        """Forget the run: its bundle is published."""
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not there, or somebody keeps something else in it
            self.path.parent.rmdir()

    def _write(self, state: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_suffix(".tmp")
        with open(scratch, "wb") as file:
            torch.save(state | {"identity": self.identity}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, self.path)
