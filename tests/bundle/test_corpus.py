"""The corpus of bad and odd images: what the decoder says of each, without a server."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.attacks.case import Case
from tests.attacks.corpus import SPEC, corpus, likeness

from penult.bundle.errors import ImageError
from penult.bundle.guards import LEARNING_LIMITS
from penult.bundle.preprocess import crop_encoded, decoding_pixels, open_image

ROOT = Path(__file__).parents[2]
# Decodes one file and prints by how many bytes the process has grown at its peak.
_PEAK = """
import sys
from penult.bundle.guards import LEARNING_LIMITS
from penult.bundle.preprocess import Preprocess, crop_encoded
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) << 10
data, before = sys.stdin.buffer.read(), peak()
crop_encoded(data, Preprocess(32, 32), LEARNING_LIMITS)
print(peak() - before)
"""


def test_the_corpus_is_what_it_claims_to_be():
    """There are more than 150 images, more bad than a third, more good than a third, no two of them the same."""
    assert len(corpus()) > 350
    bad = sum(bool(case.reason) for case in corpus().values())
    assert len(corpus()) / 3 < bad < len(corpus()) * 2 / 3
    small = [case.data for case in corpus().values() if not case.is_slow]
    assert len(set(small)) > len(small) - 4  # "header-twice" is no second picture
    assert all(case.like in corpus() for case in corpus().values() if case.like)


@pytest.mark.system
def test_it_is_the_same_in_every_process():
    """Another process makes the same bytes."""
    code = (
        "import hashlib; from tests.attacks.corpus import corpus;"
        "print(hashlib.sha256(b''.join(c.data for c in corpus().values())).hexdigest())"
    )
    env = os.environ | {"PYTHONHASHSEED": "99"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(b"".join(case.data for case in corpus().values())).hexdigest()


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged metadata: the server logs them
def test_verdicts():
    """Every image is refused for its own reason, or decoded; pairs that show the same picture give the same crop."""
    cases = [case for case in corpus().values() if not case.is_slow]
    assert {case.name: found for case in cases if (found := _fault(case))} == {}


def _fault(case: Case) -> str:
    try:
        crop = crop_encoded(case.data, SPEC, LEARNING_LIMITS)
    except ImageError as error:
        is_right = error.reason == case.reason and error.message.isprintable()
        return "" if is_right else f"{error.reason}, not {case.reason}: {error.message!r}, {error.__cause__!r}"
    if case.reason or crop.shape != (32, 32, 3):
        return f"decoded to {crop.shape}, not {case.reason}"
    if case.like and (cosine := likeness(case.data, corpus()[case.like].data)) < case.cosine:
        return f"cosine {cosine} to {case.like}"
    return ""


@pytest.mark.system  # hundreds of megabytes
def test_large_photos_take_what_the_budget_counts():
    """Photos of 49 and 200 million pixels grow the process by 4 bytes per pixel counted at most, and some for slack."""
    large = [case for case in corpus().values() if case.is_slow]
    assert large
    assert {case.name: over for case in large if (over := _grown_bytes(case) - _counted_bytes(case)) >= 48 << 20} == {}


def _counted_bytes(case: Case) -> int:
    return 4 * decoding_pixels(open_image(case.data, LEARNING_LIMITS, SPEC))


def _grown_bytes(case: Case) -> int:
    done = subprocess.run([sys.executable, "-c", _PEAK], input=case.data, capture_output=True, check=True)
    return int(done.stdout)
