"""What makes a server one of several workers, seen from within; supervisor.py is the supervisor that starts them.

The supervisor holds the other end of standard input: a byte there asks the worker to drain, and the end says that the
supervisor is gone. Signals would not do for that: where a whole group gets them (Ctrl-C, systemd), one that is also
forwarded would count as the second, which ends a server at once. On standard output a worker reports that it is ready,
then every second that its event loop still turns, since a probe of the supervisor cannot see that.
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

# Set by the supervisor to the folder of the metrics; no setting, so no word about it in --help.
VARIABLE = "PENULT_INTERNAL_WORKER"
# And this to the number of the worker, 1 and up.
NUMBER = "PENULT_INTERNAL_WORKER_NUMBER"
STOP = b"."
READY = b"ready "
HEARTBEAT_S = 1.0
_STANDARD_INPUT = 0


def is_first() -> bool:
    """Return whether this process logs what all workers of a server have to say alike: the first, or a server alone."""
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
    """Call `ask_to_stop` on the running loop when the supervisor says so; end the process when it is gone."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        while os.read(_STANDARD_INPUT, 1):
            with contextlib.suppress(RuntimeError):  # the loop is closed: this process is ending anyway
                loop.call_soon_threadsafe(ask_to_stop)
        # Not a drain: nobody would read our log or our metrics, and the next supervisor needs the port now.
        _clear(Path(os.environ[VARIABLE]))
        os._exit(1)

    # A thread, so that it happens even where the event loop hangs.
    threading.Thread(target=read, name="supervisor", daemon=True).start()


def _clear(folder: Path) -> None:
    """Remove what a killed supervisor could not; whichever worker comes last removes the folder."""
    with contextlib.suppress(OSError):
        for path in folder.glob("*.db"):
            path.unlink(missing_ok=True)
        folder.rmdir()


async def heartbeat() -> None:
    """Report to the supervisor, for ever, that this event loop turns."""
    while True:
        print("alive", flush=True)
        await asyncio.sleep(HEARTBEAT_S)
