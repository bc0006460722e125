"""Trace one request and one training run through the files of penult: `python docs/walk.py classify|train`.

Runs one Classify of one JPEG (dense head, CPU) or one short `penult train`. Prints the number of files and functions,
and how often a reader who follows the run moves to another file or room. `--root PATH` traces another checkout with
the same Python.
"""

import argparse
import importlib
import inspect
import io
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import architecture

REQUESTS = 9


class Call(NamedTuple):
    """One call of a function of penult: the thread, the module and the function's name."""

    thread: int
    module: str
    function: str


class Recorder:
    """Records the calls of penult's own functions, in all threads that start while it is installed."""

    def __init__(self, root: Path) -> None:
        self._modules = {str(path.resolve()): name for name, path in architecture.modules(root).items()}
        self.calls: list[Call] = []
        self.is_on = False
        threading.setprofile(self._hook)
        sys.setprofile(self._hook)

    def _hook(self, frame: FrameType, event: str, _argument: object) -> None:
        if event != "call" or not self.is_on:
            return
        code = frame.f_code
        module = self._modules.get(code.co_filename)
        # Bodies of modules and classes are not optimized; a comprehension is part of the function around it.
        if module and code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.endswith(("comp>", "genexpr>")):
            self.calls.append(Call(threading.get_ident(), module, code.co_qualname))


def summary(calls: list[Call], root: Path) -> str:
    """Return the numbers of a walk: files, functions, calls, moves between files and rooms, changes of thread."""
    first = list(dict.fromkeys((call.module, call.function) for call in calls))
    known = architecture.modules(root)

    def room(module: str) -> str:
        top = ".".join(module.split(".")[:2])
        inner = architecture.room_of(module, top, known)
        return f"{top}.{inner}" if inner and top in architecture.PICTURES else top

    modules, read = [call.module for call in calls], [module for module, _ in first]
    counts = {
        "files": len(set(modules)),
        "rooms": len(set(map(room, modules))),
        "functions": len(first),
        "calls": len(calls),
        "moves from file to file": _moves(modules),
        "moves from room to room": _moves(list(map(room, modules))),
        "moves from file to file, each function read once": _moves(read),
        "moves from room to room, each function read once": _moves(list(map(room, read))),
        "changes of thread": _moves([str(call.thread) for call in calls]),
    }
    return "\n".join(f"{count:8}  {name}" for name, count in counts.items())


def path_taken(calls: list[Call]) -> str:
    """Return the files in the order in which the calls came, with the functions that ran there."""
    lines = []
    for (_, module), group in itertools.groupby(calls, key=lambda call: (call.thread, call.module)):
        lines.append(f"{module.removeprefix('penult.'):34} {', '.join(dict.fromkeys(call.function for call in group))}")
    return "\n".join(lines)


def _moves(names: list[str]) -> int:
    return sum(one != other for one, other in itertools.pairwise(names))


def classify(root: Path, folder: Path, show: Callable[[list[Call]], None]) -> None:
    """Show the calls of one Classify: of some equal requests to a warm server, the one with the fewest calls."""
    subprocess.run([sys.executable, "-m", "penult.cli", *_train_arguments(folder)], check=True, capture_output=True)
    reader, writer = os.pipe()
    recorder = Recorder(root)

    def ask() -> None:
        sys.setprofile(None)  # the client is no part of the walk
        import grpc

        from penult.v1 import penult_pb2 as pb
        from penult.v1 import penult_pb2_grpc

        with os.fdopen(reader) as lines:
            ready = next(line for line in lines if line.startswith("ready "))
        found: list[list[Call]] = []
        with grpc.insecure_channel(dict(word.split("=", 1) for word in ready.split()[1:])["grpc"]) as channel:
            image = pb.Image(encoded=(folder / "photo.jpg").read_bytes())
            request = pb.ClassifyRequest(images=[image], scorer=pb.SCORER_DENSE)
            for _ in range(REQUESTS):
                recorder.calls, recorder.is_on = [], True
                penult_pb2_grpc.PenultServiceStub(channel).Classify(request, timeout=60)
                time.sleep(0.2)  # the server records a call just after its answer has left
                recorder.is_on = False
                found.append(recorder.calls)
        show(min(found, key=len))
        os.kill(os.getpid(), signal.SIGTERM)  # the server ends the process

    threading.Thread(target=ask).start()
    options = ["--port", "0", "--metrics-port", "0", "--drain-lead", "0", "--watch-s", "0", "--device", "cpu"]
    with redirect_stdout(os.fdopen(writer, "w")):
        _penult("serve", "--models", str(folder / "models"), "--log-level", "error", *options)


def train(root: Path, folder: Path, show: Callable[[list[Call]], None]) -> None:
    """Show the calls of a training run of two epochs on some digits; what runs at import is left out."""
    arguments = _train_arguments(folder)
    for name in architecture.modules(root):
        if name.startswith(("penult.bundle", "penult.cli", "penult.export")) and not name.endswith("__main__"):
            importlib.import_module(name)
    recorder = Recorder(root)
    recorder.is_on = True
    with redirect_stdout(io.StringIO()):
        _penult(*arguments)
    recorder.is_on = False
    show(recorder.calls)


def _penult(*words: str) -> None:
    if importlib.import_module("penult.cli").main(words):
        raise SystemExit(f"walk: penult {words[0]} failed")


def _train_arguments(folder: Path) -> list[str]:
    """Write some digits and a photo below a folder; return the words that train on the digits."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits(n_class=3)
    for number, (pixels, digit) in enumerate(zip(data.images[:120], data.target, strict=False)):
        image = Image.fromarray((pixels * 255 / 16).astype(np.uint8)).convert("RGB")
        part = folder / "digits" / ("test" if number % 4 == 0 else "train") / str(digit)
        part.mkdir(parents=True, exist_ok=True)
        image.save(part / f"{number}.png")
        image.save(folder / "photo.jpg")
    out, options = str(folder / "models" / "digits"), ["--arch", "tiny5", "--weights", "none", "--freeze", "0"]
    return ["train", str(folder / "digits"), "--out", out, *options, "--epochs", "2", "--device", "cpu"]


def main() -> None:
    """Trace what the command line names, and print its numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("walk", choices=("classify", "train"))
    parser.add_argument("--root", type=Path, default=architecture.ROOT, help="checkout to trace (this one)")
    parser.add_argument("--path", action="store_true", help="also print the files in the order of the calls")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    portions = [str(root / portion) for portion in architecture.PORTIONS]
    sys.path[:0] = portions
    out = sys.stdout

    def show(calls: list[Call]) -> None:
        print(f"{arguments.walk}, {root}", *([path_taken(calls)] if arguments.path else ()), file=out, sep="\n")
        print(summary(calls, root), file=out, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"PYTHONPATH": os.pathsep.join(portions), "XDG_CACHE_HOME": folder, "ORT_DISABLE_TELEMETRY": "1"}
        {"classify": classify, "train": train}[arguments.walk](root, Path(folder), show)


if __name__ == "__main__":
    main()
