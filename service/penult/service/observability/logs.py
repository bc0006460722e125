"""Set up the log of a server, a worker or a supervisor, and format its lines.

Each event is one line: text, or a JSON object with --log-format json. Lines that belong to a request have its id, which
its trailing metadata have too. No image, descriptor or password is logged. SIGUSR1 switches between the configured
level and debug.
"""

import importlib.metadata
import json
import logging
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

log = logging.getLogger(__name__)
_access = logging.getLogger("penult.access")
_own = logging.getLogger("penult")

# Of the request that the current task works for; "" outside of requests.
request_id: ContextVar[str] = ContextVar("request_id", default="")
_TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
# What logging itself puts into a record; all other attributes came as `extra`.
_USUAL = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "request_id"}
_PASSWORD = re.compile(r"(?<=://)([^/@:]*):[^/@]*@")
_MOST = 2000


def start_log(
    settings: Mapping[str, object], changes: Mapping[str, object], *, log_format: str, log_level: str, is_worker: bool
) -> None:
    """Write log lines to standard error as `log_format` (text or json), and log the settings.

    SIGUSR1 switches between `log_level` and debug. A worker logs its settings at debug: its supervisor has logged them.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_with_request_id)
    handler.addFilter(_Noise())
    handler.setFormatter(_Json() if log_format == "json" else _Text(_TEXT))
    logging.basicConfig(handlers=[handler], force=True)
    level = getattr(logging, log_level.upper())
    _set_level(level)
    changed = _as_text(changes) or "the defaults"
    level_of_start = logging.DEBUG if is_worker else logging.INFO
    log.log(level_of_start, "penult %s starts; settings: %s", importlib.metadata.version("penult"), changed)
    log.debug("all settings: %s", _as_text(settings))

    def switch(*_: object) -> None:
        switch_level(level)
        log.debug("all settings: %s", _as_text(settings))

    signal.signal(signal.SIGUSR1, switch)


def without_password(text: str) -> str:
    """Return a text without the passwords in its URLs."""
    return _PASSWORD.sub(r"\1:…@", text)


def _as_text(settings: Mapping[str, object]) -> str:
    return without_password(" ".join(f"{name}={value}" for name, value in settings.items()))


def _set_level(level: int) -> None:
    """Log penult's own lines from this level on, and warnings of other libraries.

    At debug, log all lines of other libraries too. At INFO, faiss reports a failed import for each kind of processor
    that this machine does not have.
    """
    _own.setLevel(level)
    logging.getLogger().setLevel(level if level == logging.DEBUG else max(level, logging.WARNING))


class _Noise:
    """Drops log lines of libraries that a client caused, and limits those that repeat."""

    _EVERY_S = 10.0

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, record: logging.LogRecord) -> bool:
        """Return whether to write a line."""
        text = record.getMessage() if record.name in ("asyncio", "grpc._cython.cygrpc") else ""
        if record.name == "uvicorn.error" and record.getMessage().startswith("Invalid HTTP request"):
            return _own.level == logging.DEBUG  # the sender has a 400; a gRPC client at this port is no warning of ours
        if record.exc_info and "ExecuteBatchError" in str(record.exc_info[0]):
            return False  # a client that left while its answer was on its way
        if "out of system resource" not in text:
            return True
        record.exc_info = None  # asyncio retries at once, and logged this a thousand times a second
        is_due = time.monotonic() >= self._next
        if is_due:
            self._next = time.monotonic() + self._EVERY_S
        return is_due


def switch_level(usual: int) -> None:
    """Switch from the usual level to debug, or back."""
    _set_level(usual if _own.level == logging.DEBUG else logging.DEBUG)
    log.warning("log level is now %s", logging.getLevelName(_own.level).lower())


class AccessLog:
    """Writes a line for a share of the requests, and for each that failed by the server's fault."""

    def __init__(self, share: float) -> None:
        """Write this share of them, 0 to 1."""
        self._share = share

    def note(
        self, method: str, code: str, seconds: float, model: str, version: str, reason: str, peer: Callable[[], str]
    ) -> None:
        """Write a line, or not."""
        is_fault = code in ("INTERNAL", "UNKNOWN", "DATA_LOSS")
        if not self._share or not (is_fault or random.random() < self._share):
            return
        values = {"method": method, "code": code, "ms": round(1000 * seconds, 2), "model": model, "version": version,
                  "reason": reason, "peer": peer()}  # fmt: skip
        given = {name: value for name, value in values.items() if value != ""}
        _access.info(" ".join(f"{name}={value}" for name, value in given.items()), extra=given)


NO_ACCESS_LOG = AccessLog(0)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record).replace("\n", "\n    ")  # a line of ours begins with a time, others do not
        id_ = getattr(record, "request_id", "")
        return f"{line} request_id={id_}" if id_ else line


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:_MOST],
        }
        if getattr(record, "request_id", ""):
            values["request_id"] = vars(record)["request_id"]
        values |= {name: value for name, value in vars(record).items() if name not in _USUAL and name not in values}
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False, default=str)


def _with_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True
