"""Writing bundles: a reader sees all of one or none of it, whatever happens to the writer."""

import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.gates import eventually

from penult.bundle.errors import BundleError
from penult.bundle.manifest import Manifest
from penult.bundle.naming import versions
from penult.bundle.reader import read_bundle
from penult.bundle.writer import publish

# `make kills`: a hundred.
KILLS = int(os.environ.get("PENULT_KILLS", "6"))

# publishes SOURCE's bundle under TARGET, TIMES times or until it is killed; every file is LIMIT bytes at most.
_WRITER = """
import resource, sys
from pathlib import Path
from penult.bundle.manifest import Manifest
from penult.bundle.writer import publish
source, target, times, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
manifest = Manifest.from_json((source / "manifest.json").read_bytes())
files = {name: (source / name).read_bytes() for name in manifest.files}
files["padding"] = bytes(3_000_000)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(times):
    try:
        print(publish(target, manifest, files).name, flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""


@pytest.fixture
def contents(trained: Any) -> tuple[Manifest, dict[str, bytes]]:
    """The trained bundle's manifest and the bytes of its files."""
    manifest = Manifest.from_json((trained.folder / "manifest.json").read_bytes())
    return manifest, {name: (trained.folder / name).read_bytes() for name in manifest.files}


@pytest.fixture
def start_writer(trained: Any) -> Iterator[Any]:
    """start_writer(target, times, limit): a process that publishes once its standard input has a line."""
    started: list[subprocess.Popen[str]] = []

    def start(target: Path, times: int, limit: int = 0) -> "subprocess.Popen[str]":
        arguments = [sys.executable, "-c", _WRITER, trained.folder, target, str(times), str(limit)]
        started.append(subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "ready\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_versions_count_up(contents: tuple[Manifest, dict[str, bytes]], tmp_path: Path):
    """The first bundle is version 1, the next 2 and 3; each reads, and nothing else is left beside them."""
    for version in ("1", "2", "3"):
        assert publish(tmp_path / "digits", *contents) == tmp_path / "digits" / version
    assert sorted(entry.name for entry in (tmp_path / "digits").iterdir()) == ["1", "2", "3"]
    assert [read_bundle(tmp_path / "digits", version).version for version in (1, 2, 3)] == [1, 2, 3]


def test_what_is_read_is_what_was_written(contents: tuple[Manifest, dict[str, bytes]], tmp_path: Path):
    """The manifest lists the files given and no others, and everything comes back byte for byte."""
    manifest, files = contents
    folder = publish(tmp_path / "digits", manifest, files | {"deep/er/note.txt": b"note"})
    bundle = read_bundle(tmp_path / "digits")
    assert set(bundle.manifest.files) == set(files) | {"deep/er/note.txt"}
    assert (folder / "deep/er/note.txt").read_bytes() == b"note"
    assert bundle.onnx == files["model.onnx"]
    assert bundle.manifest.classes == manifest.classes


def test_another_user_may_read_a_bundle(contents: tuple[Manifest, dict[str, bytes]], tmp_path: Path):
    """The folder can be entered and listed by the service's user."""
    folder = publish(tmp_path / "digits", *contents)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_the_next_version_follows_the_highest(contents: tuple[Manifest, dict[str, bytes]], tmp_path: Path):
    """Gaps are not filled, and a folder that some other tool began counts as taken."""
    publish(tmp_path / "digits", *contents)
    shutil.copytree(tmp_path / "digits" / "1", tmp_path / "digits" / "7")
    assert publish(tmp_path / "digits", *contents).name == "8"
    (tmp_path / "digits" / "9").mkdir()
    assert publish(tmp_path / "digits", *contents).name == "10"
    assert read_bundle(tmp_path / "digits", 7).version == 7


def test_a_taken_name_is_left_alone(contents: tuple[Manifest, dict[str, bytes]], tmp_path: Path):
    """A file that has the next number is stepped over, not replaced."""
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "1").write_bytes(b"mine")
    assert publish(tmp_path / "digits", *contents).name == "2"
    assert (tmp_path / "digits" / "1").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["my digits", "größe", "a.b"])
def test_an_unusable_name_is_refused(contents: tuple[Manifest, dict[str, bytes]], tmp_path: Path, name: str):
    """A folder that the service could not serve is not written to."""
    with pytest.raises(BundleError):
        publish(tmp_path / name, *contents)
    assert not (tmp_path / name).exists()


def test_concurrent_writers_get_different_versions(start_writer: Any, tmp_path: Path):
    """Two processes that publish ten bundles each at the same time make twenty versions that all read."""
    writers = [start_writer(tmp_path / "digits", 10) for _ in range(2)]
    for writer in writers:
        _go(writer)
    claimed = [{line.strip() for line in writer.stdout} for writer in writers]
    assert all(len(own) == 10 for own in claimed)
    assert claimed[0] | claimed[1] == {str(version) for version in range(1, 21)}
    for version in range(1, 21):
        read_bundle(tmp_path / "digits", version)


def _go(writer: "subprocess.Popen[str]") -> None:
    writer.stdin.write("go\n")
    writer.stdin.flush()


class Reading:
    """A thread that reads every version there is, again and again, while others write."""

    def __init__(self, folder: Path) -> None:
        """Read models/NAME."""
        self._folder, self._is_over = folder, threading.Event()
        self.reads, self.faults = 0, list[Exception]()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> "Reading":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._is_over.is_set():
            for version in versions(self._folder)[-3:]:
                try:
                    read_bundle(self._folder, version)
                    self.reads += 1
                except Exception as fault:
                    self.faults.append(fault)


@pytest.mark.timeout(3600)
def test_a_killed_writer_leaves_whole_versions_only(start_writer: Any, tmp_path: Path):
    """kill -9 at random moments: readers, then or after, see whole versions only."""
    rng, folder, halves, seen, reads = random.Random(0), tmp_path / "digits", 0, 0, 0
    for kill in range(KILLS):
        writer = start_writer(folder, 1000)
        with Reading(folder) as reading:
            _go(writer)
            # On a busy machine, a moment after the start may come before the first version.
            eventually(lambda: kill % 2 or versions(folder))  # noqa: B023 (it is called at once)
            time.sleep(rng.uniform(0.005, 0.25))
            writer.kill()
            writer.wait()
        assert reading.faults == []
        reads += reading.reads
        halves += len(list(folder.glob(".writing-*")))
        for version in versions(folder):
            assert read_bundle(folder, version).version == version
        seen += len(versions(folder))
        shutil.rmtree(folder)
    print(
        f"\n{KILLS} kills: {halves} amid a write, {seen} versions finished before, {reads} reads meanwhile, all whole"
    )
    assert halves > 0, "no kill hit a write"
    assert seen > 0, "no version was finished before a kill"


def _age(folder: Path, hours: float) -> None:
    then = time.time() - 3600 * hours
    os.utime(folder, (then, then))


def _begun(folder: Path) -> Path:
    """Wait until a writer has begun its first file, and return its folder."""
    end = time.monotonic() + 30
    while not (found := list(folder.glob(".writing-*/*"))):
        assert time.monotonic() < end, "nothing was begun in time"
    return found[0].parent


def test_what_killed_writers_left_is_removed(
    contents: tuple[Manifest, dict[str, bytes]], start_writer: Any, tmp_path: Path
):
    """A folder that no process holds is removed by the next publish, once nobody has changed it for an hour."""
    folder, left = tmp_path / "digits", list[Path]()
    while not left:
        writer = start_writer(folder, 1000)
        _go(writer)
        _begun(folder)
        writer.kill()
        writer.wait()
        left = list(folder.glob(".writing-*"))
    _age(left[0], 0.9)
    publish(folder, *contents)
    assert left[0].exists()
    _age(left[0], 1.1)
    (folder / ".writing-file").write_bytes(b"mine")
    (folder / ".writing-link").symlink_to(tmp_path)
    publish(folder, *contents)
    assert sorted(folder.glob(".writing-*")) == [folder / ".writing-file", folder / ".writing-link"]
    read_bundle(folder)


def test_a_writer_at_work_is_left_alone(contents: tuple[Manifest, dict[str, bytes]], start_writer: Any, tmp_path: Path):
    """However long a writer has stood still, its folder is its own while it lives, and it finishes."""
    folder = tmp_path / "digits"
    is_stopped = False
    while not is_stopped:  # again, where a writer was quicker than the signal
        writer = start_writer(folder, 1)
        _go(writer)
        begun = _begun(folder)
        writer.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, writer.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        is_stopped = begun.exists()
    _age(begun, 1000)
    own = publish(folder, *contents)
    assert begun.exists()
    writer.send_signal(signal.SIGCONT)
    assert writer.stdout.readline().strip() == str(int(own.name) + 1)
    assert read_bundle(folder).version == int(own.name) + 1


@pytest.mark.parametrize("limit", [1, 5_000, 1_000_000])
def test_a_disk_that_refuses_leaves_nothing(start_writer: Any, tmp_path: Path, limit: int):
    """A write that fails half-way raises OSError and leaves neither a version nor a scrap of one."""
    output, _ = start_writer(tmp_path / "digits", 2, limit).communicate("go\n")
    assert output.split() == ["OSError", "OSError"]
    assert list((tmp_path / "digits").iterdir()) == []


def test_a_failed_write_leaves_the_versions_before_it(
    contents: tuple[Manifest, dict[str, bytes]], start_writer: Any, tmp_path: Path
):
    """What was published before a disk filled up stays as it was."""
    publish(tmp_path / "digits", *contents)
    start_writer(tmp_path / "digits", 1, 5_000).communicate("go\n")
    assert [entry.name for entry in (tmp_path / "digits").iterdir()] == ["1"]
    read_bundle(tmp_path / "digits")
