"""The label file on real disks that refuse: full, read-only, without permission. And what is on the disk when it says so."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from penult.export.data import tables
from penult.label.errors import LabelFileError
from penult.label.labels_file import Label, LabelsFile

pytestmark = pytest.mark.system
SCRIPT = Path(__file__).parent / "answering.py"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def fill(disk: Path, left: int = 0) -> Path:
    """Leave so many free bytes, in blocks, and return the file that takes the others."""
    path = disk / "others"
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    os.truncate(path, path.stat().st_size - left)
    return path


def labels_of(path: Path) -> dict[str, str]:
    return {row.image: row.label for row in tables.read_csv(path)}


def test_a_full_disk_loses_nothing(small_disk: Path):
    """Answers, changes and skips are refused in one line, the file stays whole; with space again all goes on."""
    path = small_disk / "labels.csv"
    file = LabelsFile(path)
    expected, others, refused = {}, fill(small_disk, 8192), 0
    for number in range(2000):
        label = Label(f"a rather long name of a folder/{number:05d}.jpg", "cat", "unsure", "dog")
        try:
            file.put([label])
        except LabelFileError as error:
            refused += 1
            assert str(error) == f"cannot write {path}: No space left on device; free some space"
        else:
            expected[label.image] = "cat"
        if refused == 5:
            break
    assert len(expected) > 50
    first = next(iter(expected))
    for change in (lambda: file.put([Label(first, "a longer label")]), lambda: file.take_back([first])):
        with pytest.raises(LabelFileError, match="No space left on device"):
            change()
    assert labels_of(path) == {image: label.label for image, label in file.labels.items()} == expected
    others.unlink()
    file.put([Label(first, "dog"), label])
    file.close()
    assert labels_of(path) == expected | {first: "dog", label.image: "cat"}


def test_a_disk_that_turns_read_only_loses_nothing(small_disk: Path):
    """As a disk with errors does: one line, and labelling goes on when it is writable again."""
    path = small_disk / "labels.csv"
    file = LabelsFile(path)
    file.put([Label("a.jpg", "cat")])
    file.close()
    remount = ["mount", "-o", "remount", small_disk]
    subprocess.run([*remount[:2], "remount,ro", small_disk], check=True)
    try:
        with pytest.raises(LabelFileError, match=r"labels\.csv: Read-only file system; name another place"):
            LabelsFile(path)
        assert labels_of(path) == {"a.jpg": "cat"}
    finally:
        subprocess.run([*remount[:2], "remount,rw", small_disk], check=True)
    file = LabelsFile(path)
    file.put([Label("b.jpg", "cat")])
    file.close()
    assert labels_of(path) == {"a.jpg": "cat", "b.jpg": "cat"}


CLOSED = {
    "folder": (0o555, 0o644, "cannot write .*labels.csv: Permission denied; give yourself the right to it"),
    "file": (0o777, 0o444, "cannot write .*labels.csv: Permission denied; give yourself the right to it"),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize("kind", CLOSED)
def test_another_users_file_is_refused_at_the_start(kind: str):
    """Before a single photo is described, and nothing is left there."""
    folder_mode, file_mode, why = CLOSED[kind]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "labels.csv"
        path.write_text("image,label\na.jpg,cat\n")
        path.chmod(file_mode)
        folder.chmod(folder_mode)
        code = f"""if True:
            import os
            from pathlib import Path
            from penult.label.errors import LabelFileError
            from penult.label.labels_file import LabelsFile
            os.setuid(65534)
            try: LabelsFile(Path({str(path)!r}))
            except LabelFileError as error: print(error)"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        assert re.fullmatch(why + ".*\n", done.stdout), done.stdout
        assert path.read_text() == "image,label\na.jpg,cat\n"


def test_every_answer_is_synced_before_it_is_acknowledged(tmp_path: Path):
    """Between two lines of a process there is an fsync of the file, and of the folder after each rename."""
    trace = tmp_path / "trace"
    path = tmp_path / "labels.csv"
    calls = "trace=fsync,fdatasync,rename,write"
    command = ["strace", "-y", "-e", calls, "-o", trace, sys.executable, SCRIPT, path, "0", "60"]
    subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=60)
    synced: set[str] = set()
    acknowledged = 0
    for line in trace.read_text().splitlines():
        if found := re.match(rf"f(?:data)?sync\(\d+<{re.escape(str(tmp_path))}/?([^>]*)>", line):
            synced.add(found[1])
        elif re.match(rf"write\(\d+<{re.escape(str(path))}>", line):
            synced.discard("labels.csv")
        elif line.startswith("rename("):
            synced.discard("")
            assert ".labels.csv.tmp" in synced
            synced.add("labels.csv")
        elif re.match(r'write\(1<.*"\d+(\\n)?"', line):
            assert {"labels.csv", ""} <= synced
            acknowledged += 1
    assert acknowledged == 60
