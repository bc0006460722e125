"""How many files, connections among them, the process may have open."""

import contextlib
import resource


def allow_open_files() -> None:
    """Let the process open as many as it may; many systems begin with 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # where the kernel says no, what was allowed stays
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
