"""A `penult serve` process on loopback, for the duration of a `with` block."""

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from penult.bench.settings import BenchError, TuneSettings

_READY_S = 300.0
_END_S = 30.0


class OwnServer:
    """A server on free ports; the settings given override those of --config."""

    def __init__(self, wanted: TuneSettings, values: Mapping[str, object]) -> None:
        """Prepare the command line; nothing runs yet."""
        options: dict[str, object] = {
            "host": "127.0.0.1", "port": 0, "metrics_port": 0, "drain_lead": 0, "log_level": "error",
            "models": wanted.models, "device": wanted.device,
        } | dict(values)  # fmt: skip
        options["config"] = wanted.config_if_there
        flags = [("--" + name.replace("_", "-"), str(value)) for name, value in options.items() if value is not None]
        self._command = [sys.executable, "-m", "penult.cli", "serve", *(word for flag in flags for word in flag)]
        self.target = self.metrics = ""

    def __enter__(self) -> Self:
        """Start it and wait until it is ready. Raises BenchError with its last line if it does not start."""
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=self._log)
        try:
            ready = dict(word.split("=", 1) for word in self._ready_line().split()[1:])
        except BaseException:
            self._end()
            raise
        self.target, self.metrics = ready["grpc"], ready["metrics"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._end()

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._process.pid

    def _ready_line(self) -> str:
        assert self._process.stdout is not None
        pipe, text, until = self._process.stdout.fileno(), b"", time.monotonic() + _READY_S
        while not text.endswith(b"\n"):
            if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
                raise BenchError(f"penult serve was not ready after {_READY_S:.0f} s")
            piece = os.read(pipe, 4096)
            if not piece:
                self._log.seek(0)
                lines = self._log.read().strip().splitlines() or ["it printed nothing"]
                raise BenchError(f"penult serve did not start: {lines[-1].removeprefix('penult: ')}")
            text += piece
        return text.decode()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()
