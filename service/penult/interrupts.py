"""Ctrl-C that ends a command at once, also while native code has the main thread.

Python raises KeyboardInterrupt in the main thread, between two of its instructions. A fit, a forward pass or an export
is one instruction, of seconds or minutes; and when the interpreter ends, it waits for worker threads that are in one.
So a thread beside them waits for the signal itself: it gives the main thread the time to notice and to clean up, and
then ends the process. What is left on the disk is what a kill leaves, and the next run deals with that.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

# The main thread gets so long to notice, and from then on so long to clean up. On a busy machine it may not run for
# half a second, and a command that is ended before it notices cannot say what it has kept.
_NOTICE_S, _CLEAN_UP_S = 2.0, 5.0
_EXIT_CODE = 1


class Interrupts:
    """Ends the process by Ctrl-C while a `with` block lasts; `line` is printed once, on standard error.

    The block sees KeyboardInterrupt as ever, if its main thread is in Python. Left after a Ctrl-C, however it was
    left, the process ends there with code 1. A second Ctrl-C does not wait for anything. If SIGINT is ignored, or
    has a handler already, nothing is changed.
    """

    def __init__(self, line: str) -> None:
        """Keep the line; nothing is watched yet."""
        self._line = line
        self._printed = threading.Lock()
        self._noticed = threading.Event()
        self._sender: socket.socket | None = None

    def report(self) -> None:
        """Print the line, if it was not printed yet."""
        if self._line and self._printed.acquire(blocking=False):
            with suppress(OSError):
                os.write(2, f"{self._line}\n".encode())

    def __enter__(self) -> Self:
        """Begin to watch; only the main thread can."""
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            return self
        receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        threading.Thread(target=self._watch, args=(receiver,), name="interrupts", daemon=True).start()
        signal.signal(signal.SIGINT, self._notice)
        # The C handler writes the signal's number there at once, whatever the main thread does.
        self._before = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process after a Ctrl-C; else let go of the signal."""
        if self._sender is None:
            return
        if self._noticed.is_set():
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(_EXIT_CODE)  # not sys.exit(), which would wait for threads in native code
        signal.set_wakeup_fd(self._before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._sender.close()

    def _notice(self, number: int, frame: FrameType | None) -> None:
        """Do what Python's own handler does, and let the watching thread know that the main thread has control."""
        self._noticed.set()
        raise KeyboardInterrupt

    def _watch(self, receiver: socket.socket) -> None:
        """End the process some time after a Ctrl-C, or by the second; return where the block was left without one."""
        presses = 0
        with receiver, suppress(TimeoutError):
            while presses < 2:  # both may come in one piece
                numbers = receiver.recv(64)
                if not numbers:
                    return
                presses += numbers.count(signal.SIGINT)
                if presses == 1:
                    if not self._noticed.wait(_NOTICE_S):
                        break
                    receiver.settimeout(_CLEAN_UP_S)
        self.report()
        os._exit(_EXIT_CODE)


@contextmanager
def pool(workers: int | None = None, prefix: str = "") -> Iterator[ThreadPoolExecutor]:
    """Yield threads; if an exception ends the block, drop what waits, and do not wait for what runs."""
    threads = ThreadPoolExecutor(workers, prefix)
    try:
        yield threads
    except BaseException:
        threads.shutdown(wait=False, cancel_futures=True)
        raise
    threads.shutdown()


def apart(work: Callable[[], T]) -> T:
    """Return what `work` returns, done on a thread: however long it is in native code, Ctrl-C gets to the caller."""
    with pool(1, "apart") as threads:
        return threads.submit(work).result()
