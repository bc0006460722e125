"""Image formats: their names, how their files begin, and which of them can be read here."""

from functools import cache
from importlib.util import find_spec

# What a service accepts by default: decoders that every browser runs on images from anywhere.
SERVED = ("JPEG", "PNG", "WEBP")
FORMATS = (*SERVED, "AVIF", "TIFF", "BMP", "GIF", "HEIC")
HEIC_LIBRARY = "pi_heif"

_TITLES = {"WEBP": "WebP"}
_BEGINNINGS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0\x08\0\0\0", "TIFF"),  # with offsets of 8 bytes
    (b"MM\0+\0\x08\0\0", "TIFF"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
)
# The sizes of a BMP's second header that Pillow reads. "BM" alone would begin too many files.
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
_MAX_BRANDS_BYTES = 256
_BRANDS = {
    "AVIF": frozenset((b"avif", b"avis")),
    "HEIC": frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")),
}


def format_of(data: bytes) -> str | None:
    """Return one of FORMATS, by a file's first bytes; None for any other file."""
    for beginning, kind in _BEGINNINGS:
        if data.startswith(beginning):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return _of_brands(data) if data[4:8] == b"ftyp" else None


def _of_brands(data: bytes) -> str | None:
    """Return the format of a file of boxes: its own brand decides, then the first known one of its others."""
    end = min(int.from_bytes(data[:4], "big"), _MAX_BRANDS_BYTES, len(data))
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))]
    return next((kind for brand in brands for kind, known in _BRANDS.items() if brand in known), None)


def listed(formats: tuple[str, ...], conjunction: str) -> str:
    """Return formats as text, as "JPEG, PNG or WebP"."""
    names = [_TITLES.get(kind, kind) for kind in formats]
    return f"{', '.join(names[:-1])} {conjunction} {names[-1]}" if len(names) > 1 else names[0]


def title(kind: str) -> str:
    """Return a format's name as people write it."""
    return _TITLES.get(kind, kind)


@cache
def can_read_heic() -> bool:
    """Return True if the extra `heic` is installed."""
    return find_spec(HEIC_LIBRARY) is not None
