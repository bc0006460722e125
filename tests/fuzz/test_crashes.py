"""What the fuzzers once broke stays mended: every file in crashes/ is run again, and the seeds with it."""

from pathlib import Path

import pytest
from tests.fuzz.checks import check_decoder, check_message
from tests.fuzz.seeds import images, messages

CRASHES = Path(__file__).parent / "crashes"
CHECKS = {"decoder": (check_decoder, images), "messages": (check_message, messages)}


@pytest.mark.parametrize("name", CHECKS)
def test_seeds_and_crashes_hold(name: str):
    """What a fuzzer begins with holds its check, and so does every input that did not once."""
    check, seeds = CHECKS[name]
    found = [*seeds(), *(path.read_bytes() for path in sorted((CRASHES / name).glob("*")))]
    assert len(found) > 5
    for data in found:
        check(data)
