"""Set the limits of this process: memory that glibc keeps, and open files.

By default glibc returns every large block to the kernel at once. A message of a few hundred kilobytes is above its
threshold, so each copy is mapped, zeroed page by page and unmapped. For requests of 16 crops that is two thirds of the
cost of gRPC and parsing. For activations and gradients it is a quarter of a fine-tuning epoch on a CPU
(bench/RESULTS.md).
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
    """Let glibc reuse blocks up to 32 MiB; return False with another C library, which stays as it is.

    Few `arenas` keep the heap from growing in as many places as there are threads.
    """
    return _set((_MMAP_THRESHOLD, _LARGEST_BYTES), (_TRIM_THRESHOLD, _KEPT_BYTES), (_ARENA_MAX, arenas))


def keep_all_blocks() -> bool:
    """Let glibc reuse blocks of any size, for a process that repeats the same work.

    Return False with another C library.
    """
    return _set((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _ALL_BYTES), (_ARENA_MAX, 1))


def give_back() -> bool:
    """Return unused pages to the kernel, as after a model was unloaded; return False if there were none."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):
        return False


def _set(*settings: tuple[int, int]) -> bool:
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
