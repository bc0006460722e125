"""Ctrl-C: a command ends at once, also from native code, and what can be cleaned up is."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

# Native code that takes some minutes, and leaves Python's lock meanwhile, as fits and forward passes do.
_LONG = "hashlib.pbkdf2_hmac('sha256', b'', b'', 500_000_000)"
# long() says "begun" from another thread, which Python lets run only once the caller is in native code.
_HEAD = f"""
import contextlib, hashlib, signal, sys, threading
from penult.interrupts import Interrupts
def say(line): print(line, flush=True)
def long(line="begun"):
    sys.setswitchinterval(1000)
    entered = threading.Event()
    threading.Thread(target=lambda: entered.wait() and say(line), daemon=True).start()
    entered.set()
    {_LONG}
    say("completed")
"""
Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a program that says "begun", and wait until it has; ended after the test, whatever it does."""
    started = []

    def start(code: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", _HEAD + code]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert line(process) == "begun"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line(process: "subprocess.Popen[str]") -> str:
    """Return what a program says next, and leave the rest to communicate()."""
    letters = b""
    while not letters.endswith(b"\n"):
        letters += os.read(process.stdout.fileno(), 1)
    return letters.decode().strip()


def interrupt(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Press Ctrl-C; return exit code, and what was printed from then on."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.parametrize("block", ["long()", "with contextlib.suppress(BaseException): long()"])
def test_native_code_does_not_put_it_off(start: Start, block: str):
    """The process ends with the line and code 1 before the native code does, whoever would take the exception."""
    process = start(f"with Interrupts('interrupted'):\n    {block}")
    assert interrupt(process) == (1, "", "interrupted\n")


def test_worker_threads_in_native_code_are_not_waited_for(start: Start):
    """The main thread cleans up; the interpreter's wait for its threads is left out."""
    process = start("""
from penult.interrupts import apart
with Interrupts("interrupted") as interrupts:
    try:
        apart(long)
    except KeyboardInterrupt:
        say("cleaned up")
        interrupts.report()
""")
    assert interrupt(process) == (1, "cleaned up\n", "interrupted\n")


def test_an_svm_in_the_middle_of_its_search_is_left(start: Start):
    """Folds that are being fitted do not keep the main thread from cleaning up; the search does not complete."""
    process = start("""
import numpy as np
from penult.export.evaluation import svm
descriptors, labels = np.random.default_rng(0).normal(size=(4000, 512)), np.arange(4000) % 200
with Interrupts("interrupted") as interrupts:
    try:
        threading.Timer(0.1, lambda: say("begun")).start()
        svm.fit(descriptors, labels, seed=0)
        say("completed")
    except KeyboardInterrupt:
        say("cleaned up")
        interrupts.report()
""")
    assert interrupt(process) == (1, "cleaned up\n", "interrupted\n")


def test_a_second_one_does_not_wait_for_the_cleaning_up(start: Start):
    """Ctrl-C in the cleaning up of the first ends the process, although that would go on for minutes."""
    process = start("""
with Interrupts("interrupted"):
    try:
        say("begun")
        threading.Event().wait()
    finally:
        long("cleaning")
""")
    process.send_signal(signal.SIGINT)
    assert line(process) == "cleaning"
    assert interrupt(process) == (1, "", "interrupted\n")


@pytest.mark.parametrize("handler", ["signal.SIG_IGN", "lambda *_: say('handled')"])
def test_a_handler_that_is_there_stays(handler: str, start: Start):
    """Where SIGINT is ignored, as below nohup, or handled already, it is left to that."""
    process = start(f"""
signal.signal(signal.SIGINT, {handler})
with Interrupts("interrupted"):
    say("begun")
    signal.raise_signal(signal.SIGINT)
say("completed")
""")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert out == ("handled\n" if "handled" in handler else "") + "completed\n"


def test_nothing_stays_behind_a_block(start: Start):
    """After the block, SIGINT is Python's own again, and no thread is left."""
    process = start("""
with Interrupts("interrupted"):
    say("begun")
    watcher = next(t for t in threading.enumerate() if t.name == "interrupts")
watcher.join(30)
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and signal.set_wakeup_fd(-1) == -1
say([thread.name for thread in threading.enumerate()])
""")
    assert process.communicate(timeout=300) == ("['MainThread']\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_command_ends_at_once_and_one_process_says_so(rank: str, start: Start):
    """`penult train` ends with code 1 in native code; under torchrun the first process alone says what to do."""
    process = start(f"""
import os, penult.cli, penult.cli.train
os.environ["RANK"] = {rank!r}
penult.cli.train.run = lambda arguments: long()
sys.argv = ["penult", "train", "photos", "--out", "models/pets"]
sys.exit(penult.cli.main())
""")
    said = "penult: interrupted; --resume goes on from the last epoch\n" if rank == "0" else ""
    assert interrupt(process) == (1, "", said)
