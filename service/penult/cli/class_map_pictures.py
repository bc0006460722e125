"""Pictures of class maps: `penult classify --map`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from penult.cli.arguments import PICTURES, Refused
from penult.client.types import Classification, RequestFailed

if TYPE_CHECKING:
    from penult.client.types import PhotoAnswer


def check_place(target: Path | None, photos: int) -> None:
    """Raise Refused if the maps of so many photos cannot be written to `target`.

    It is a picture, or a folder for several.
    """
    if target is None:
        return
    is_picture = target.suffix.lower() in PICTURES
    if is_picture and photos > 1:
        raise Refused(f"--map {target} is one picture, and there are {photos} photos; name a folder")
    if is_picture and (target.is_dir() or not target.parent.is_dir()):
        raise Refused(f"--map {target} cannot be written; name a picture in a folder that exists")
    if not is_picture and target.exists() and not target.is_dir():
        raise Refused(f"--map {target} is a file; name a picture such as map.png, or a folder")


def draw(target: Path, answers: "Sequence[PhotoAnswer[Classification]]") -> None:
    """Draw the class maps of answers over their photos; raise RequestFailed if a file cannot be written."""
    from penult.bundle.class_map import ClassMap
    from penult.bundle.overlay import draw_map, save
    from penult.bundle.preprocess import decode

    is_picture = target.suffix.lower() in PICTURES
    try:
        if not is_picture:
            target.mkdir(parents=True, exist_ok=True)
        for place, answer in enumerate(answers):
            if not isinstance(answer.result, Classification):
                continue
            path = Path(str(answer.photo))
            photo = np.asarray(decode(path.read_bytes()))
            for found in answer.result.class_maps:
                drawn = ClassMap(found.label, found.values, found.offset, found.area)
                save(
                    draw_map(photo, drawn), target if is_picture else target / f"{place + 1:04d}-{path.stem[:100]}.png"
                )
    except (OSError, ValueError) as error:
        raise RequestFailed("INVALID_ARGUMENT", "MAP", f"--map {target}: {error}") from error
