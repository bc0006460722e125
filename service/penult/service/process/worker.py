"""The worker's side of several workers; supervisor.py starts them.

The supervisor holds the other end of standard input. A byte there asks the worker to drain; its end means that the
supervisor is gone. Signals cannot replace that: if a whole process group gets one (Ctrl-C, systemd), a forwarded one
would count as the second, which ends a server at once. On standard output a worker reports that it is ready, then every
second that its event loop still runs, since a probe of the supervisor cannot detect that.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from penult.service.config import ServeConfig
from penult.service.observability.logs import start_log

# The supervisor sets this to the folder of the metrics. It is no setting, so --help does not list it.
VARIABLE = "PENULT_INTERNAL_WORKER"
# The supervisor sets this to the number of the worker, from 1.
NUMBER = "PENULT_INTERNAL_WORKER_NUMBER"
STOP = b"."
READY = b"ready "
HEARTBEAT_S = 1.0
_STANDARD_INPUT = 0


def is_first() -> bool:
    """Return whether this process logs messages that are the same for all workers: the first, or a server alone."""
    return os.environ.get(NUMBER, "1") == "1"


def is_worker() -> bool:
    """Return whether a supervisor started this process."""
    return VARIABLE in os.environ


def start_log_of(config: ServeConfig) -> None:
    """Start the log of this process, as `config` says."""
    start_log(
        asdict(config),
        config.changed(),
        log_format=config.log_format,
        log_level=config.log_level,
        is_worker=is_worker(),
    )


def follow_supervisor(ask_to_stop: Callable[[], object]) -> None:
    """Call `ask_to_stop` on the running loop when the supervisor asks; end the process when it is gone."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        while os.read(_STANDARD_INPUT, 1):
            with contextlib.suppress(RuntimeError):  # the loop is closed: this process is ending anyway
                loop.call_soon_threadsafe(ask_to_stop)
        # No drain: our log and metrics have no reader any more, and the next supervisor needs the port now.
        _clear(Path(os.environ[VARIABLE]))
        os._exit(1)

    # A thread, so that this works even if the event loop hangs.
    threading.Thread(target=read, name="supervisor", daemon=True).start()


def _clear(folder: Path) -> None:
    """Remove what a killed supervisor could not; the last worker removes the folder."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        folder.rmdir()


async def heartbeat() -> None:
    """Report to the supervisor every second that this event loop runs."""
    while True:
        print("alive", flush=True)
        await asyncio.sleep(HEARTBEAT_S)
