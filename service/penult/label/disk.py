"""Write files so that what was acknowledged is on the disk after kill -9 or a power failure."""

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class State(NamedTuple):
    """What the system reports of a file; it differs after another program has written or replaced the file."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def state_of(file: Path | int) -> State:
    """Return the state of a path or an open file; raise OSError."""
    status = os.stat(file)
    return State(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def append(path: Path, data: bytes, expected: State) -> State | None:
    """Append to a file and wait until that is on the disk.

    Args:
        path: The file, which must exist.
        data: The bytes, written by one call.
        expected: The state that the caller has read.

    Returns:
        The state afterwards; None if another program has changed the file, and nothing was written.

    Raises:
        OSError: The file could not be written. It has its old length then, unless the disk refuses that too.
    """
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        if state_of(file) != expected:
            return None
        append_to(file, data)
        return state_of(file)
    finally:
        os.close(file)


def append_to(file: int, data: bytes) -> None:
    """Append to a file that is open for appending, as append() does; raise OSError."""
    size = os.fstat(file).st_size
    try:
        _write(file, data)
        os.fsync(file)
    except OSError:
        with suppress(OSError):
            os.ftruncate(file, size)
            os.fsync(file)
        raise


def _write(file: int, data: bytes) -> None:
    """Write all bytes, by one call unless the disk is nearly full; the next call then says why."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def truncate(path: Path, size: int) -> None:
    """Cut a file to a size in bytes and wait until that is on the disk; raise OSError."""
    file = os.open(path, os.O_WRONLY)
    try:
        os.ftruncate(file, size)
        os.fsync(file)
    finally:
        os.close(file)


def replace(path: Path, data: bytes) -> State:
    """Write a file under a temporary name, rename it, and wait until both are on the disk.

    The mode of an existing file is kept, and its owner if this process may set it. A temporary file that a killed
    process left is overwritten.

    Returns:
        The state of the new file.

    Raises:
        OSError: The file could not be written; the old one is unchanged.
    """
    scratch = scratch_of(path)
    with suppress(FileNotFoundError):
        os.unlink(scratch)
    file = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with suppress(FileNotFoundError):
            _take_mode(file, os.stat(path))
        _write(file, data)
        os.fsync(file)
        os.replace(scratch, path)
        state = state_of(file)
    except BaseException:
        with suppress(OSError):
            os.unlink(scratch)
        raise
    finally:
        os.close(file)
    sync_folder(path.parent)
    return state


def scratch_of(path: Path) -> Path:
    """Return the name under which a file is written before it is renamed."""
    return path.with_name(f".{path.name}.tmp")


def _take_mode(file: int, status: os.stat_result) -> None:
    with suppress(OSError):
        os.fchown(file, status.st_uid, status.st_gid)
    os.fchmod(file, status.st_mode & 0o7777)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk; some file systems cannot, and need not."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)


def lock(file: int) -> bool:
    """Take the lock of an open file; the kernel releases it when the process ends, for whatever reason.

    Returns:
        False if the file system has no locks.

    Raises:
        BlockingIOError: Another process has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True
