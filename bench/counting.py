"""Serve without a model and count calls: `python bench/counting.py serve --models …`.

Counts every call of a Python or C function in all threads that Python knows. For each line on standard input it prints
the counts so far as JSON, {"library, function": calls}, and starts from zero.
"""

import json
import sys
import threading
from collections import Counter
from types import CodeType, FrameType

import null_runtime

_counts: Counter[tuple[CodeType, str]] = Counter()


def count(frame: FrameType, event: str, argument: object) -> None:
    """Count a call, under the function that is called, or the one that calls a C function."""
    if event == "call":
        _counts[frame.f_code, ""] += 1
    elif event == "c_call":
        _counts[frame.f_code, getattr(argument, "__qualname__", str(argument))] += 1


def answer() -> None:
    """Print the counts for each line, from a thread that is not counted."""
    sys.setprofile(None)
    for _ in sys.stdin:
        found, named = _counts.copy(), Counter()
        _counts.clear()
        for (code, builtin), calls in found.items():
            library = library_of(code.co_filename)
            named[f"{library}, {builtin + ' (C), called by ' if builtin else ''}{code.co_qualname}"] += calls
        print(json.dumps(named), flush=True)


def library_of(path: str) -> str:
    """Return the room of penult, the installed package or the standard library's module that a file belongs to."""
    for mark, before in (("/site-packages/", ""), ("/lib/python3.", "stdlib."), ("/penult/", "penult.")):
        _, found, rest = path.rpartition(mark)
        if found:
            parts = rest.removesuffix(".py").split("/")
            room = parts[:-1] if before == "penult." else parts[1:2] if before else parts[:1]
            return before + ".".join(room)
    return "generated" if path.startswith("<") else "other"


if __name__ == "__main__":
    threading.Thread(target=answer, daemon=True).start()
    threading.setprofile(count)
    sys.setprofile(count)
    null_runtime.run()
