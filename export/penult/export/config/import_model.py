"""The options of `penult import`, and the small files that they name. Light to import."""

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar

from penult.bundle.preprocess import AS_STORED, CROP, STRETCH, Preprocess
from penult.bundle.refusals import why
from penult.export.config import photos
from penult.export.config.train import SVM_KERNELS, TrainSettings
from penult.export.errors import ImportModelError
from penult.nearest import did_you_mean
from penult.settings import setting

EXAMPLE = '\'{"resize": 256, "crop": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}\''
_KEYS = ("resize", "crop", "mean", "std", "interpolation", "fit", "rescale", "colors")
_MAX_FILE_BYTES = 16 << 20


@dataclass(frozen=True)
class ImportSettings(photos.LearningSettings):
    """A model that was trained elsewhere."""

    PREFIX: ClassVar[str] = "PENULT_IMPORT_"

    source: Path = setting(MISSING, "ONNX file, checkpoint, Hugging Face folder or .mar archive", is_positional=True)
    out: Path = setting(Path(), "folder like models/NAME, which gets a version", metavar="MODEL")
    arch: str = setting(
        "", "network of a checkpoint, such as resnet18 or timm/NAME", metavar="ARCH", shown="that of the source"
    )
    labels: Path | None = setting(
        None, "class names, a line each or JSON", metavar="FILE", shown="the source's, or folders of --photos"
    )
    preprocess: str = setting(
        "", "how images become the input, as JSON or its file", metavar="JSON|FILE", shown="the network's own"
    )
    descriptor: str = setting(
        "", "tensor or module that becomes the descriptor", metavar="TENSOR", shown="input of the last dense layer"
    )
    photos: Path | None = setting(
        None, "labelled images for SVM and report; unlabelled ones for goldens", metavar="DIR", shown="made-up goldens"
    )
    val: str = setting(TrainSettings.val, "images for probabilities and default scorer", metavar="DIR|FRACTION")
    test: str = setting(TrainSettings.test, "images for the final report only", metavar="DIR|FRACTION")
    seed: int = setting(0, "seed of splits and folds", minimum=0, below=2**32)
    kernel: str = setting("auto", "kernel of the SVM; auto chooses by cross-validation", choices=SVM_KERNELS)
    report_photos: bool = setting(True, "show test images in the report")

    def __post_init__(self) -> None:
        """Check that a model is named."""
        super().__post_init__()
        if self.out == Path():
            raise ImportModelError("OUT", "--out is missing; give the model's folder, as --out models/NAME")

    @property
    def data(self) -> Path | None:
        """The photos, under the name that other commands have for them."""
        return self.photos


# -- preprocessing -----------------------------------------------------------------------------------------------------


def read_preprocess(given: str, side: int, is_side_known: bool = True, own: Preprocess | None = None) -> Preprocess:
    """Return the preprocessing of --preprocess.

    Args:
        given: JSON, or the path of a file that holds it.
        side: Height and width of the model's input in pixels; 0 if the model leaves it open.
        is_side_known: False before the model is read.
        own: The network's own preprocessing, which fills in what is not given. None if it has none.

    Raises:
        ImportModelError: Something is missing, unknown, or not among what penult does.
    """
    if not given:
        if own:
            return own
        raise _refused(f"--preprocess is missing: give what the model was trained with, for example {EXAMPLE}")
    values = _parsed(given)
    if unknown := sorted(set(values) - set(_KEYS)):
        guess = did_you_mean(unknown[0], _KEYS) or f"; known are {', '.join(_KEYS)}"
        raise _refused(f"--preprocess: unknown key {unknown[0]!r}{guess}")
    if own:
        values = _filled(values, own)
    crop = values.get("crop", side)
    if not is_side_known:
        crop = values.get("crop", values.get("resize", Preprocess.crop))
    if not crop:
        raise _refused("--preprocess: crop is missing, the model's input size in pixels, as the model leaves it open")
    if side and crop != side:
        raise _refused(f"--preprocess: crop is {crop}, and the model's input has {side} pixels; give crop {side}")
    fit = values.get("fit", CROP)
    if missing := [key for key in ("mean", "std", "resize") if key not in values and (key, fit) != ("resize", STRETCH)]:
        raise _refused(f"--preprocess: {' and '.join(missing)} missing; for example {EXAMPLE}")
    scale = 255 * _rescale(values.get("rescale", "1/255"))
    try:
        mean, std = (_three(values[key], scale) for key in ("mean", "std"))
        return Preprocess(
            values.get("resize", crop), crop, values.get("interpolation", Preprocess.interpolation),
            mean, std, fit, values.get("colors", AS_STORED),
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        said = str(error).removeprefix("preprocess: ")
        raise _refused(f"--preprocess: {said}; an example is {EXAMPLE}") from error


def _filled(values: dict[str, Any], own: Preprocess) -> dict[str, Any]:
    """Return the values with the network's own for those that are not given."""
    if "rescale" in values and not {"mean", "std"} <= set(values):
        raise _refused("--preprocess: rescale is the unit of mean and std; give both too")
    kept = {key: getattr(own, key) for key in _KEYS if hasattr(own, key)}
    if values.get("fit", own.fit) != own.fit:
        del kept["resize"]  # another fit has another size
    return kept | values


def _refused(message: str) -> ImportModelError:
    return ImportModelError("PREPROCESS", message)


def _parsed(given: str) -> dict[str, Any]:
    text = given if given.lstrip().startswith("{") else _text(Path(given), "--preprocess")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refused(f"--preprocess is not JSON ({error}); an example is {EXAMPLE}") from error
    if not isinstance(values, dict):
        raise _refused(f"--preprocess is not a JSON object; an example is {EXAMPLE}")
    return values


def _three(values: Any, scale: float) -> tuple[float, float, float]:
    red, green, blue = (float(number) / scale for number in values)
    return red, green, blue


def _rescale(value: object) -> float:
    """Return the factor of pixel values, a number or text like "1/255"."""
    parts = re.fullmatch(r"\s*([\d.]+)\s*/\s*([\d.]+)\s*", value) if isinstance(value, str) else None
    try:
        factor = float(parts[1]) / float(parts[2]) if parts else float(str(value))
        if 0 < factor < 1e6:
            return factor
    except (ValueError, ZeroDivisionError):
        pass
    raise _refused(f"--preprocess: rescale is {value!r}; give the factor of pixel values, as 1/255")


# -- labels ------------------------------------------------------------------------------------------------------------


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the class names of the file of --labels in the order of the logits; raise ImportModelError."""
    return named_classes(_text(path, "--labels"), f"--labels {path}")


def names_inside(text: str, source: str) -> tuple[str, ...]:
    """Return the class names that a model brings along, made different by their numbers; raise ImportModelError.

    Two of ImageNet's classes are "crane", and the owner of a model cannot change that.
    """
    return named_classes(text, source, is_given=False)


def named_classes(text: str, source: str, is_given: bool = True) -> tuple[str, ...]:
    """Return the class names of a text in the order of the logits; raise ImportModelError.

    The text has a name on each line. Or it is JSON: a list of names, an object from numbers to names (also under
    "id2label", as in a Hugging Face config.json), or one from names to numbers.

    Args:
        text: The content of a file.
        source: How messages name the file.
        is_given: Whether equal names are refused; else they get the number of their class.
    """
    if text.lstrip()[:1] in ("{", "["):
        try:
            names = _names_of(json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise _refused_labels(f"{source} has no list of names and no id2label; write one name per line") from error
    else:
        names = [line.strip() for line in text.splitlines()]
        while names and not names[-1]:
            names.pop()
    if not is_given:
        names = [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names)]
    for number, name in enumerate(names):
        if not name:
            raise _refused_labels(f"{source} has no name for class {number}; give every class a name")
        if (first := names.index(name)) != number:
            raise _refused_labels(
                f"{source} has {name!r} twice, for classes {first} and {number}; make the names differ"
            )
    if len(names) < 2:
        raise _refused_labels(f"{source} has {len(names)} names; a classifier has at least 2")
    return tuple(names)


def check_count(labels: tuple[str, ...], logits: int, source: str) -> None:
    """Raise ImportModelError if there is not one name for each logit."""
    if len(labels) != logits:
        raise _refused_labels(
            f"{source} has {len(labels):,} names, and the model gives {logits:,} scores; give one each"
        )


def _names_of(content: object) -> list[str]:
    if isinstance(content, dict):
        content = content.get("id2label", content)
    if isinstance(content, Mapping):
        if all(isinstance(value, int) for value in content.values()):
            content = {number: name for name, number in content.items()}
        by_number = {int(number): name for number, name in content.items()}
        if sorted(by_number) != list(range(len(by_number))):
            raise ValueError("the numbers have gaps")
        content = [by_number[number] for number in range(len(by_number))]
    if not isinstance(content, list):
        raise TypeError("no list of names")
    # Keras has [synset, name] for each number.
    names = [each[-1] if isinstance(each, list) and each else each for each in content]
    if not all(isinstance(name, str) for name in names):
        raise TypeError("names are texts")
    return [name.strip() for name in names]


def _refused_labels(message: str) -> ImportModelError:
    return ImportModelError("LABELS", message)


def _text(path: Path, option: str) -> str:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ImportModelError("FILE", f"{option} {path} is larger than {_MAX_FILE_BYTES >> 20} MiB; give another")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        said = why(error) if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ImportModelError("FILE", f"{option} {path} cannot be read: {said}") from error
