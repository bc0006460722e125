"""The decoder on any bytes and on damaged images: an image or an ImageError, nothing else."""

from hypothesis import given
from hypothesis import strategies as st
from tests.attacks.corpus import corpus
from tests.attacks.test_messages import damaged, examples, one_of
from tests.fuzz.checks import check_decoder

SIGNATURES = st.sampled_from(
    [
        b"",
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\x40\0\0\0WEBPVP8 ",
        b"RIFF\x40\0\0\0WEBPVP8X",
        b"GIF89a",
        b"BM" + bytes(12) + b"\x28",
        b"II*\0\x08\0\0\0",
        b"MM\0*\0\0\0\x08",
        b"\0\0\0\x18ftypavif\0\0\0\0mif1miaf",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    ]
)
GOOD = [case.data for case in corpus().values() if not case.reason and len(case.data) < 8000]


@examples(300, 20_000)
@given(SIGNATURES, st.binary(max_size=400))
def test_any_bytes(signature: bytes, rest: bytes):
    """Bytes without and behind the signatures of all formats."""
    check_decoder(signature + rest)


@examples(500, 50_000)
@given(damaged(one_of(GOOD)))
def test_damaged_images(data: bytes):
    """Good images of every kind, damaged in up to six places."""
    check_decoder(data)
