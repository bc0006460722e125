"""Publish what has been labelled: the next version of a model, made by a command of its own.

The command runs in a process of its own. So the page stays quick, a failure ends nothing but the job, and the memory
of PyTorch and scikit-learn is given back. A server that serves the model loads the version as any other one.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penult.bundle.naming import model_name, name_to_publish, versions
from penult.bundle.reader import choose_version, read_manifest
from penult.client.types import RequestFailed
from penult.export.config import known_networks
from penult.folders.names import normalised, printable
from penult.label.errors import LabelError
from penult.label.exchange import rows_for_training
from penult.label.labels_file import LabelsFile
from penult.label.stored import store, wait_for_version

_NICENESS = 5
_STOP_S = 10
_ERROR = "penult: "
# tqdm's lines: what is done, its share, a bar, and the rate.
_BAR = re.compile(r"^(?P<what>.*?):? +(?P<share>\d+)%\|")
_BREAK = re.compile(rb"[\r\n]")
# scikit-learn warns of small classes in each fold. A line of progress would be hidden by it.
_QUIET = {"PYTHONWARNINGS": "ignore"}


@dataclass(frozen=True)
class Base:
    """The network that describes the photos.

    It is either a model's, or a known network's with weights.

    Attributes:
        model: A folder like models/NAME.
        version: Its version; None is the newest.
        arch: The name of a network.
        weights: Its weights, as `penult train` takes them.
    """

    model: Path | None = None
    version: int | None = None
    arch: str = ""
    weights: str = ""


@dataclass(frozen=True)
class Collection:
    """A collection of a running server, and the photos whose labels it gets: SHA-256 (hex) by path."""

    target: str
    name: str
    photos: Mapping[str, str]


class Publisher:
    """Publishes versions of one model, one job at a time, from any thread."""

    def __init__(
        self, file: LabelsFile, images: Path, model: Path | None, base: Base, collection: Collection | None = None
    ) -> None:
        """Publish nothing yet.

        Args:
            file: The labels. A job reads a copy, so they may change meanwhile.
            images: The folder of the photos.
            model: The folder of the model that gets versions, like models/NAME; it need not exist. None publishes no
                version, and only stores labels in the collection.
            base: The network of the first version. Later versions keep the network of the newest version, which may
                have been fine-tuned since.
            collection: Gets the labelled photos once the version is served; None stores nothing.

        Raises:
            BundleError: A version cannot be published there, or the base has no such version.
            LabelError: The base cannot be a model's network.
        """
        if model is not None:
            name_to_publish(model)
        if base.model is not None:
            choose_version(base.model, base.version)
        elif model is not None and base.weights == "none":
            raise LabelError(
                "WEIGHTS",
                "--publish needs a network that has been trained: give --model, or --weights FILE or imagenet",
            )
        self._file, self._images, self._model, self._base = file, images, model, base
        self._collection = collection
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._is_running = self._is_stopped = False
        self._version: int | None = None
        self._message = ""

    def start(self) -> None:
        """Begin a job, unless one is running; what cannot be published is the message of state()."""
        with self._lock:
            if self._is_running or self._is_stopped:
                return
            self._is_running, self._version, self._message = True, None, "reading the labels"
            self._thread = threading.Thread(target=self._publish, name="publish", daemon=True)
            self._thread.start()

    def state(self) -> dict[str, Any]:
        """Return the model's folder, whether a job is running, the version that the last one made, and a line.

        The line is the progress of the job, or why it failed. `version` is None until a job has succeeded.
        """
        with self._lock:
            return {
                "model": str(self._model or ""),
                "is_running": self._is_running,
                "version": self._version,
                "message": self._message,
            }

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until no job is running."""
        if thread := self._thread:
            thread.join(timeout_s)

    def stop(self) -> None:
        """End the running job, if there is one, and begin no other."""
        with self._lock:
            process, self._is_stopped = self._process, True
        if process:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
        self.wait(_STOP_S)

    def command(self, labels: Path) -> list[str]:
        """Return the words of the command that makes the next version from a label file, without the interpreter."""
        assert self._model is not None  # callers check it
        photos = [str(labels), "--images", str(self._images), "--skip-missing"]
        out, base = ["--out", str(self._model)], self._base
        pinned = ["--version", str(base.version)] if base.version else []
        if versions(self._model):
            is_own = base.model is not None and base.model.resolve() == self._model.resolve()
            return ["svm", str(self._model), *photos, *(pinned if is_own else [])]
        if base.model is not None:
            return ["svm", str(base.model), *photos, *pinned, *out]
        return ["train", *photos, *out, "--arch", base.arch, "--weights", base.weights, "--freeze", "all"]

    def _publish(self) -> None:
        """Run a job, on a thread of its own."""
        version, done = None, list[str]()
        try:
            labels = {image: label.label for image, label in dict(self._file.labels).items()}
            if self._model is not None:
                version = self._publish_version(labels)
                done.append(f"version {version} is published, of {len(labels)} labels")
            if self._collection:
                done.append(self._store(self._collection, labels, version))
        except LabelError as error:
            done.append(error.message)
        except RequestFailed as error:
            done.append(f"labels are not stored: {error.message}")
        except Exception as error:  # a full disk, or a bug: the page shows it, and the button works again
            done.append(f"cannot publish: {error or repr(error)}")
        with self._lock:
            self._is_running, self._process, self._version, self._message = False, None, version, "; ".join(done)

    def _publish_version(self, labels: Mapping[str, str]) -> int:
        """Publish the next version; raise LabelError."""
        check_classes(labels.values())
        with tempfile.TemporaryDirectory(prefix="penult-publish-") as folder:
            snapshot = Path(folder) / "labels.csv"
            snapshot.write_bytes(rows_for_training(self._file))
            return self._run(self.command(snapshot))

    def _store(self, collection: Collection, labels: Mapping[str, str], version: int | None) -> str:
        """Put the labels into the collection, described by the model that is served; raise RequestFailed."""
        named = self._model or self._base.model
        model = model_name(named) if named else ""
        if version:
            line = f"waiting until {collection.target} serves version {version}"
            wait_for_version(collection.target, model, version, on_poll=lambda: self._show(line))
        after = store(
            collection.target, collection.name, self._images, labels, collection.photos, model,
            lambda done, total: self._show(f"storing labels: {done} of {total}"),
        )  # fmt: skip
        return after.line(collection.name)

    def _show(self, line: str) -> None:
        """Show what the job does; raise LabelError if it is to end."""
        with self._lock:
            if self._is_stopped:
                raise LabelError("PUBLISH", "stopped")
            self._message = line

    def _run(self, words: Sequence[str]) -> int:
        """Run a command of penult and follow its progress; return the version. Raises LabelError."""
        # -P: files of the folder that the user is in are not imported.
        command = [sys.executable, "-P", "-m", "penult.cli", *words, "--json"]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | _QUIET
        )
        with self._lock:
            self._process = process
            is_stopped = self._is_stopped
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)  # the page's own work comes first
        if is_stopped:
            process.terminate()
        with process:
            assert process.stdout is not None and process.stderr is not None
            answer: list[bytes] = []
            reading = threading.Thread(
                target=lambda out: answer.append(out.read()), args=(process.stdout,), daemon=True
            )
            reading.start()
            refused = ""
            for line in _lines(process.stderr.fileno()):
                refused = line.removeprefix(_ERROR) if line.startswith(_ERROR) else refused
                self._show(_readable(line))
            code = process.wait()
            reading.join()
        if code:
            why = "stopped" if code < 0 else "it failed without a message; run it by itself to see why"
            raise LabelError("PUBLISH", refused or why)
        return int(Path(json.loads(answer[0])["bundle"]).name)


def check_classes(labels: Iterable[str]) -> None:
    """Raise LabelError unless there are labels of two classes; of one, a model of novelty would be made."""
    classes = {normalised(label) for label in labels}
    if len(classes) < 2:
        found = f"all labels are {printable(repr(classes.pop()))}" if classes else "there are no labels yet"
        raise LabelError("PUBLISH", f"{found}; label photos of at least two classes first")


def train_command(data: Sequence[str], model: Path, base: Base) -> str:
    """Return the line that fine-tunes a network on the labels as the model's next version, quoted for a shell.

    From a model, its architecture is taken, with ImageNet weights if there are any. An imported model has none that
    can be trained, so the line has the default one.

    Args:
        data: What `penult train` takes to read the labels, LabelsFile.train_arguments.
        model: The model's folder.
        base: The network that describes the photos.

    Raises:
        BundleError: The base has no such version.
    """
    words = ["penult", "train", *data, "--out", str(model)]
    if base.model is None:
        return shlex.join([*words, "--arch", base.arch, "--weights", base.weights])
    manifest = read_manifest(base.model / str(choose_version(base.model, base.version)))
    network = known_networks.find(manifest.architecture)
    if network is None:
        return shlex.join(words)
    return shlex.join([*words, "--arch", network.name, *([] if network.downloads else ["--weights", "none"])])


def _lines(descriptor: int) -> Iterator[str]:
    """Yield lines as soon as they are there; a progress bar ends its lines with a carriage return."""
    rest = b""
    while part := os.read(descriptor, 65536):
        *done, rest = _BREAK.split(rest + part)
        yield from filter(None, (line.decode("utf-8", "replace").strip() for line in done))
    if rest.strip():
        yield rest.decode("utf-8", "replace").strip()


def _readable(line: str) -> str:
    """Return a line of progress without its bar."""
    if bar := _BAR.match(line):
        return f"{bar['what']}: {bar['share']} %"
    return line.removeprefix(_ERROR)
