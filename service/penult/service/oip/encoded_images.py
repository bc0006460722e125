"""Read encoded images as clients of the Open Inference Protocol write them: bytes of files, base64, or data URIs.

Base64 may have line breaks, lack its padding, or use the alphabet for URLs. Bytes of an image file are never read as
text, because no such file begins as base64 or a data URI does.
"""

import base64
import binascii
import re
from collections.abc import Sequence

from penult.service.errors import InvalidRequest

# How base64 of a JPEG, a PNG and a WebP begins, the first in the alphabet for URLs too.
_STARTS = (b"/9j/", b"_9j_", b"iVBORw0KGgo", b"UklGR")
_DATA_URI = re.compile(rb"data:([^,]{0,200}),", re.IGNORECASE)
_WHITE = b" \t\r\n\f\v"
_STANDARD = bytes.maketrans(b"-_", b"+/")
# Bytes that decide between text and a file.
HEAD_BYTES = 32


def is_text(item: bytes) -> bool:
    """Return whether bytes are an image written as text; no image file begins like it."""
    head = item[:HEAD_BYTES].lstrip(_WHITE)
    return head.startswith(_STARTS) or head[:5].lower() == b"data:"


def files_of(items: Sequence[str | bytes], is_base64: bool = False) -> list[bytes]:
    """Return the bytes of image files, decoded if they came as text.

    A str is base64 or a data URI. Bytes are so only if they begin like it, or with `is_base64`. Raises InvalidRequest,
    which names the image by its index.
    """
    return [
        _decoded(item, place) if isinstance(item, str) or is_base64 or is_text(item) else item
        for place, item in enumerate(items)
    ]


def _decoded(item: str | bytes, place: int) -> bytes:
    text = item.encode(errors="replace") if isinstance(item, str) else item
    text = text.lstrip(_WHITE)
    if found := _DATA_URI.match(text):
        if not found[1].lower().rstrip().endswith(b";base64"):
            raise _wrong(place, "a data URI of a photo says ;base64 before its comma")
        text = text[found.end() :]
    text = text.translate(_STANDARD, _WHITE).rstrip(b"=")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (ValueError, binascii.Error) as error:
        raise _wrong(place, "as text, a photo's file is base64 or a data URI") from error


def _wrong(place: int, what: str) -> InvalidRequest:
    return InvalidRequest("INPUT_CONTENTS", f"image {place}: {what}")
