"""What the machine refuses becomes one line; what may be a bug does not."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from penult.bundle.refusals import refusal, why


def test_a_full_disk_is_told_without_a_name():
    """write() names no file where a disk is full, and it is no bug for that."""
    with pytest.raises(OSError) as caught, Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")
    assert caught.value.filename is None
    assert refusal(caught.value) == "No space left on device; free some space"


@pytest.mark.parametrize("as_given", [os.fspath, os.fsencode, Path])
def test_a_place_that_cannot_be_is_named(tmp_path: Path, as_given: Callable):
    """The file is named, in whichever type it was given, with the system's reason and what to do."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError) as caught, open(as_given(tmp_path / "file" / "x")):
        pass
    line = refusal(caught.value)
    assert line is not None
    assert line.startswith(f"{tmp_path}/file/x: Not a directory; ")


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(errno.ENOENT, "No such file", "table.csv"), PermissionError(errno.EPERM, "not permitted"),
     ConnectionResetError(errno.ECONNRESET, "reset"), OSError("text"), OSError(errno.EBADF, "bad", 3),
     IsADirectoryError(errno.EISDIR, "is a directory", 3), ValueError("no file at all")],
    ids=repr,
)  # fmt: skip
def test_other_errors_are_bugs(error: Exception):
    """Missing files, sockets, descriptors and signals are penult's own business: they keep their traceback."""
    assert refusal(error) is None


def test_every_reason_comes_with_advice():
    """An error without a number, or with a rare one, still says what to do."""
    assert why(OSError("text")) == "text; look after it, or name another place"
    assert why(OSError(errno.ESTALE, "Stale")) == "Stale; look after it, or name another place"
