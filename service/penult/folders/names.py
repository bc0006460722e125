"""Classify files and folders by name: images, other pictures, files of systems, splits of a data set."""

import re
import unicodedata
from typing import NamedTuple

from penult.extras import how_to_install

# What a file is, its first bytes decide. These are the endings under which an image is looked for.
PHOTO_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".png", ".webp", ".avif", ".avifs", ".tif", ".tiff",
    ".bmp", ".gif", ".heic", ".heif", ".hif", ".heics", ".heifs",
)  # fmt: skip
PHOTOS = "JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF or HEIC"

ARCHIVE = "archive"
_MOGRIFY = "to make JPEGs with ImageMagick: find . -name '*{suffix}' -exec mogrify -format jpg {{}} +"


class Kind(NamedTuple):
    """Files out of which penult reads no photo, and what to do to get one; {suffix} stands for their ending."""

    name: str
    suffixes: tuple[str, ...]
    advice: str = _MOGRIFY


# Read with pi-heif alone. Clients send such files all the same, for it is the server that reads them.
HEIC = Kind(
    "HEIC", (".heic", ".heif", ".hif", ".heics", ".heifs"), f"to read them, {how_to_install('heic')}, or convert them"
)

KINDS = (
    HEIC,
    Kind("JPEG XL", (".jxl",)),
    Kind("JPEG 2000", (".jp2", ".j2k", ".jpx", ".jpf", ".jpc")),
    Kind("Netpbm", (".ppm", ".pgm", ".pbm", ".pnm")),
    Kind("TGA", (".tga",)),
    Kind("Photoshop", (".psd",)),
    Kind(
        "camera RAW",
        (".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".dng", ".orf", ".rw2", ".rwl", ".raf", ".pef",
         ".srw", ".3fr", ".iiq", ".x3f", ".erf", ".mrw", ".kdc", ".dcr", ".raw"),
        "to make JPEGs, export from the camera's program or darktable",
    ),
    Kind(
        "video",
        (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".3gp", ".mts", ".m2ts", ".wmv"),
        "to take single pictures: ffmpeg -i FILE -vf fps=1 FILE-%04d.jpg",
    ),
    Kind(ARCHIVE, (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"), "unpack first"),
)  # fmt: skip
_KIND_OF = {suffix: kind for kind in KINDS for suffix in kind.suffixes}

# Thumbnails, waste bins and notes that systems put beside photos; names that begin with a dot are passed over anyhow.
_SYSTEM_NAMES = {
    "__macosx", "icon\r",
    "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp",
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini",
    "$recycle.bin", "recycler", "system volume information",
    "lost+found", "_gsdata_", "network trash folder", "temporary items", "__pycache__",
}  # fmt: skip
# What a file from the internet gets beside it when it is copied out of Windows.
_SYSTEM_END = ":zone.identifier"

_SPLITS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset"), "val"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
}
_BETWEEN = re.compile(r"[_\-. ]+")


def is_photo(name: str) -> bool:
    """Whether a file of this name is taken for a photo."""
    return name.lower().endswith(PHOTO_SUFFIXES)


def kind_of(name: str) -> Kind | None:
    """Return what a file that is not read is known to be by its name; None for all others."""
    _, dot, ending = name.lower().rpartition(".")
    return _KIND_OF.get(dot + ending)


def is_hidden(name: str) -> bool:
    """Whether a name is passed over without a word: it begins with a dot, as macOS's ._NAME.jpg does."""
    return name.startswith(".")


def is_from_system(name: str) -> bool:
    """Whether a file or folder is one that systems add beside people's own, such as @eaDir or Thumbs.db."""
    lower = name.lower()
    return lower in _SYSTEM_NAMES or lower.endswith(_SYSTEM_END)


def split_of(name: str) -> str | None:
    """Return train, val or test for a folder's name, in any usual spelling; None for other names."""
    return _SPLITS.get(name.casefold())


def affixed_split_of(name: str) -> tuple[str, str] | None:
    """Return what stands beside the split's name, and the split, for names such as seg_train and test_images."""
    words = _BETWEEN.split(name.casefold())
    named = [place for place, word in enumerate(words) if word in _SPLITS]
    if len(words) < 2 or len(named) != 1 or named[0] not in (0, len(words) - 1):
        return None
    rest = [word if place != named[0] else "*" for place, word in enumerate(words)]
    return " ".join(rest), _SPLITS[words[named[0]]]


def normalised(name: str) -> str:
    """Return a class's name in NFC: file systems and archives spell one accented letter in two ways."""
    return unicodedata.normalize("NFC", name)


def printable(text: str) -> str:
    """Return a name as one printable line of text: what is neither printable nor UTF-8 is spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
