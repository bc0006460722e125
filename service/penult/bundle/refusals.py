"""What the machine refuses: a full disk, a folder of others. No bug, so each becomes one line that says what to do."""

import errno
import os

# Of these, write() and fsync() name no file; they are nobody's bug all the same.
_FULL = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or ask for a larger quota",
    errno.EFBIG: "allow larger files (ulimit -f)",
}
_ADVICE = _FULL | {
    errno.EACCES: "give yourself the right to it, or name another place",
    errno.EPERM: "give yourself the right to it, or name another place",
    errno.EROFS: "name another place",
    errno.ENOTDIR: "move the file that is in a folder's place, or name another place",
    errno.EEXIST: "move the file that is in a folder's place, or name another place",
    errno.EISDIR: "name a file, not a folder",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "mend the link, or name another place",
    errno.EIO: "look after the disk, or name another place",
}


def why(error: OSError) -> str:
    """Return the system's reason and what to do, as "No space left on device; free some space"."""
    return f"{error.strerror or error}; {_ADVICE.get(error.errno or 0, 'look after it, or name another place')}"


def refusal(error: Exception) -> str | None:
    """Return one line for an error of files or folders; None for any other error, which is a bug."""
    if not isinstance(error, OSError) or error.errno not in _ADVICE:
        return None
    if isinstance(error.filename, str | bytes | os.PathLike):
        return f"{os.fsdecode(error.filename)}: {why(error)}"
    return why(error) if error.errno in _FULL else None
