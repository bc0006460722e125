"""glibc's heap, told to keep what is freed: it gives every large block back at once, and faults it in again.

A message of a few hundred kilobytes is above glibc's threshold, so each of its copies is mapped, zeroed page by page
and unmapped: for requests of 16 crops, two thirds of what gRPC and parsing cost. Activations and gradients are larger
still: a quarter of the time of a fine-tuning epoch on a CPU (bench/RESULTS.md).
"""

import contextlib
import ctypes
import logging
import resource

log = logging.getLogger(__name__)

# mallopt()'s numbers, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
_KEPT_BYTES = 256 << 20
# The most that glibc allows (HEAP_MAX / 2), and what a whole message may have.
_LARGEST_BYTES = 32 << 20
_ALL_BYTES = (1 << 31) - 1


def keep_freed_blocks(arenas: int) -> bool:
    """Let glibc reuse blocks up to 32 MiB; return False where the C library is another, which then goes on as it does.

    A few `arenas` keep the heap from growing in as many places as there are threads.
    """
    return _tell((_MMAP_THRESHOLD, _LARGEST_BYTES), (_TRIM_THRESHOLD, _KEPT_BYTES), (_ARENA_MAX, arenas))


def keep_all_blocks() -> bool:
    """Let glibc reuse blocks of any size and return none, as suits a process that does the same over and over.

    Return False as above.
    """
    return _tell((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _ALL_BYTES), (_ARENA_MAX, 1))


def give_back() -> bool:
    """Return the pages that nothing uses to the kernel, as after a model has gone; False where nothing was returned."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):
        return False


def _tell(*settings: tuple[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    is_set = all(mallopt(number, value) for number, value in settings)
    log.debug("freed blocks are kept: %s", is_set)
    return is_set


def allow_open_files() -> None:
    """Let the process open as many as it may; many systems begin with 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # where the kernel says no, what was allowed stays
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
