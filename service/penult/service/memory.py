"""What the process takes from the system: memory, and open files.

glibc gives every large block back at once, and faults it in again for the next photo. A message of a few hundred
kilobytes is above glibc's threshold, so each of its copies is mapped, zeroed page by page and unmapped: for requests
of 16 crops, two thirds of what gRPC and parsing cost (bench/RESULTS.md). Blocks up to 32 MiB stay in the heap
instead, and a few arenas keep the heap from growing in as many places as there are threads.
"""

import contextlib
import ctypes
import logging
import resource

log = logging.getLogger("penult.memory")

# mallopt()'s numbers, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 256 << 20
# The most that glibc allows (HEAP_MAX / 2), and what a whole message may have.
_LARGEST_BYTES = 32 << 20


def keep_freed_blocks(arenas: int) -> bool:
    """Let glibc reuse large blocks; return False where the C library is another, which then goes on as it does."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_MMAP_THRESHOLD, _LARGEST_BYTES), (_TRIM_THRESHOLD, _KEPT_BYTES), (_ARENA_MAX, arenas))
    is_set = all(mallopt(number, value) for number, value in settings)
    log.debug("freed blocks are kept: %s", is_set)
    return is_set


def give_back() -> bool:
    """Return the pages that nothing uses to the kernel, as after a model has gone; False where nothing was returned."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):
        return False


def allow_open_files() -> None:
    """Let the process open as many files, connections among them, as it may; many systems begin with 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # where the kernel says no, what was allowed stays
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
