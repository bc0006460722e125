"""Convert the paths of a label file, as they are spelt there, to paths below the labelled folder, and back."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

_SAMPLE = 100
# penult train takes what begins with these for an address.
_ADDRESSES = ("http:", "https:", "s3:", "gs:", "azure-blob:", "hdfs:", "data:")


class LabelPaths:
    """The folder that the paths of a label file start from, and the folder that is labelled.

    Both are the same, as in `penult train FILE --images FOLDER`, unless the file is from elsewhere. If more of its
    images are found from the file's own folder, the paths start from there.

    Attributes:
        base: The folder that the paths start from.
        is_own: Whether that is the file's own folder, so that `penult train FILE` needs no --images.
    """

    def __init__(self, root: Path, own: Path, images: Sequence[str]) -> None:
        """Choose the base by images of the file."""
        self._root, own_text = os.path.abspath(root), os.path.abspath(own)
        self._real_root = os.path.realpath(root)
        sample = images[:: max(1, len(images) // _SAMPLE)]
        found = {base: sum(_spelling(base, each)[1] for each in sample) for base in (self._root, own_text)}
        self.base = own_text if found[own_text] > found[self._root] else self._root
        self.is_own = self.base == own_text

    def id_of(self, image: str) -> str | None:
        """Return the path below the labelled folder, with "/"; None if the image is not in there."""
        if image.startswith(_ADDRESSES):
            return None
        spelt = os.path.normpath(image)
        if not spelt.isascii() or "\\" in spelt:
            spelt, _ = _spelling(self.base, image)
        if self.base == self._root and spelt != ".." and not spelt.startswith(("/", "../")):
            return spelt
        path = os.path.normpath(os.path.join(self.base, spelt))
        for root in (self._root, self._real_root):
            if path.startswith(os.path.join(root, "")):
                return path[len(os.path.join(root, "")) :]
        return None

    def spelt(self, image: str) -> str:
        """Return how a path below the labelled folder is written into the file."""
        path = image if self.base == self._root else os.path.relpath(os.path.join(self._root, image), self.base)
        return readable(path)


def readable(path: str) -> str:
    """Return a path as readers of label files take it: they strip spaces, and reject what looks like an address."""
    return f"./{path}" if path != path.lstrip() or path.startswith(_ADDRESSES) else path


def can_be_written(image: str) -> bool:
    """Return False for a path that no label file can hold: it is not UTF-8, or ends with a space."""
    try:
        image.encode()
    except UnicodeEncodeError:
        return False
    return image == image.rstrip() and "\0" not in image


def _spelling(base: str, image: str) -> tuple[str, bool]:
    """Return the spelling under which an image exists, as penult train tries them, and whether one does."""
    slashed = image.replace("\\", "/")
    tried = [image, *(unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))]
    for each in dict.fromkeys(tried):
        if "\0" not in each and os.path.lexists(os.path.join(base, each)):
            return os.path.normpath(each), True
    return os.path.normpath(slashed), False
