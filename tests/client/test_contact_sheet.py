"""Thumbnails and the tiles of contact sheets show a photo as the service sees it."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.attacks.case import encode, exif, picture, stored
from tests.attacks.jpegs import jpeg, segment, with_front

from penult.client.tools.contact_sheet import _picture, thumbnail

_XMP = segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>')


def _phones() -> bytes:
    """A JPEG of 200 megapixels, of which Pillow by itself would raise."""
    data = jpeg()
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + (12_240).to_bytes(2, "big") + (16_320).to_bytes(2, "big") + data[at + 4 :]


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (_phones(), (256, 192)),
        (with_front(jpeg(), _XMP), (96, 72)),
        (with_front(jpeg(), segment(0xEE, b"Adobe\0")), (96, 72)),
        (with_front(encode(stored(6), "JPEG"), segment(0xE1, b"Exif\0\0" + exif(6))), (96, 72)),
        (b"GIF89a", None),
        (jpeg()[:400], None),
    ],
    ids=["200 megapixels", "xmp", "short segment", "turned", "gif", "cut"],
)
def test_thumbnails_are_made_as_the_service_decodes(data: bytes, size: tuple[int, int] | None, tmp_path: Path):
    """Also of the largest photos and those with faulty metadata; of what is no photo there is none, and nothing raises."""
    path = tmp_path / "photo"
    path.write_bytes(data)
    made = thumbnail(path)
    assert (Image.open(io.BytesIO(made)).size if made else None) == size
    tile = _picture(path)
    assert (tile is None) == (size is None)
    if size == (96, 72):
        upright = np.asarray(picture().resize((24, 18))).astype(int)
        assert np.abs(np.asarray(Image.open(io.BytesIO(made)).resize((24, 18))) - upright).mean() < 6
