"""Read the orientation of an image from its EXIF block, which may hold anything.

EXIF alone counts, as in browsers, OpenCV and libvips. XMP and text chunks often describe an earlier version of the
image.
"""

import struct

UPRIGHT = 1
_TAG = 0x0112
_PREFIX = b"Exif\0\0"
_BYTE_ORDERS = {b"II": "<", b"MM": ">"}
_MAGIC = (b"*\0", b"\0*")
# TIFF's whole numbers: SHORT, LONG, SSHORT, SLONG.
_WHOLE = {3: "H", 4: "I", 8: "h", 9: "i"}
# Cameras write less than a hundred.
_MAX_ENTRIES = 4096


def exif_orientation(block: bytes | memoryview) -> int:
    """Return the orientation, 1 to 8, that an EXIF block names; 1 (upright) if it names none, or is damaged."""
    view = memoryview(block)
    for _ in range(2):  # WebP and PNG should hold it without the prefix, and some writers put it there
        if view[:6] == _PREFIX:
            view = view[6:]
    order = _BYTE_ORDERS.get(bytes(view[:2]))
    if order is None or bytes(view[2:4]) not in _MAGIC:
        return UPRIGHT
    try:
        found = _first_directory(view, order)
    except struct.error:  # it ends too early
        return UPRIGHT
    return found if UPRIGHT <= found <= 8 else UPRIGHT


def _first_directory(view: memoryview, order: str) -> int:
    (start,) = struct.unpack_from(f"{order}I", view, 4)
    (entries,) = struct.unpack_from(f"{order}H", view, start)
    for at in range(start + 2, start + 2 + 12 * min(entries, _MAX_ENTRIES), 12):
        tag, kind, count = struct.unpack_from(f"{order}HHI", view, at)
        if tag == _TAG:
            return _value(view, order, kind, count, at + 8)
    return UPRIGHT


def _value(view: memoryview, order: str, kind: int, count: int, at: int) -> int:
    """Return the first of `count` whole numbers, which stand in the entry itself if they fit into 4 bytes."""
    letter = _WHOLE.get(kind)
    if letter is None or count < 1:
        return UPRIGHT
    if count * struct.calcsize(letter) > 4:
        (at,) = struct.unpack_from(f"{order}I", view, at)
    (found,) = struct.unpack_from(f"{order}{letter}", view, at)
    return int(found)
