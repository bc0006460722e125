"""Runs a fuzz target for a time: `python -m tests.fuzz.decoder SECONDS FOLDER`.

FOLDER gets what the fuzzer found worth keeping, and goes on from it the next time. An input that breaks a check is kept
in tests/fuzz/crashes/TARGET/, where test_crashes.py runs it for ever after. Python code is instrumented, penult's and
Pillow's own; Pillow's C code is not, so its branches do not guide the fuzzer.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

CRASHES = Path(__file__).parent / "crashes"
INSTRUMENTED = ["penult.bundle", "penult.service", "PIL"]
_MAX_BYTES = 6000
_MAX_SECONDS_PER_INPUT = 20
_MAX_MIB = 2048


def fuzz(name: str, check: Callable[[bytes], None], seeds: Iterable[bytes]) -> None:
    """Run `check` on ever new bytes; ends the process."""
    import atheris

    seconds, folder = int(sys.argv[1]), Path(sys.argv[2]) / name
    folder.mkdir(parents=True, exist_ok=True)
    crashes = CRASHES / name
    crashes.mkdir(parents=True, exist_ok=True)
    for place, seed in enumerate(seeds):
        (folder / f"seed-{place:03d}").write_bytes(seed)
    arguments = [
        *(sys.argv[0], str(folder), f"-artifact_prefix={crashes}/", f"-max_total_time={seconds}"),
        *(f"-max_len={_MAX_BYTES}", f"-timeout={_MAX_SECONDS_PER_INPUT}", f"-rss_limit_mb={_MAX_MIB}"),
        "-print_final_stats=1",
    ]
    atheris.Setup(arguments, check)
    atheris.Fuzz()
