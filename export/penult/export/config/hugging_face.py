"""Read config.json and preprocessor_config.json of a Hugging Face folder, without its libraries."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penult.bundle.preprocess import CROP, STRETCH, Preprocess
from penult.bundle.refusals import why
from penult.export.config.import_model import names_inside
from penult.export.errors import ImportModelError

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
# The CNN families of transformers that classify images. PyTorch exports "bit" wrongly: its weights are normalised like
# a batch.
FAMILIES = (
    "convnext", "convnextv2", "efficientnet", "hgnet_v2", "mobilenet_v1", "mobilenet_v2", "regnet", "resnet",
)  # fmt: skip
_TRANSFORMERS = (
    "beit", "cvt", "data2vec-vision", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "hiera", "levit",
    "mobilevit", "mobilevitv2", "pvt", "pvt_v2", "siglip", "swin", "swinv2", "vit", "vit_msn",
)  # fmt: skip
_MAX_BYTES = 16 << 20
_EXPORT = "export the model as ONNX, and import that file"
_FILTERS = {2: "bilinear", 3: "bicubic"}
_OTHER_FILTERS = {0: "nearest", 1: "lanczos", 4: "box", 5: "hamming"}
# ConvNext's processor crops only below this size; from it on, images are stretched.
_STRETCHED_FROM = 384
_PIXELS = 255
# What each image processor of transformers does, by the beginning of its name.
_CONVNEXT, _EFFICIENTNET = "ConvNext", "EfficientNet"
_PROCESSORS = (_CONVNEXT, _EFFICIENTNET, "MobileNetV1", "MobileNetV2", "Bit", "ViT")
_SQUARE = (_EFFICIENTNET, "ViT")
_ENDINGS = ("Fast", "Pil", "ImageProcessor", "FeatureExtractor")
_READ = (
    "do_resize", "size", "resample", "crop_pct", "do_center_crop", "crop_size", "do_rescale", "rescale_factor",
    "do_normalize", "image_mean", "image_std", "rescale_offset", "include_top", "image_processor_type",
    "feature_extractor_type",
)  # fmt: skip
# They change nothing of an RGB photo.
_IDLE = (
    "data_format", "default_to_square", "device", "disable_grouping", "do_convert_rgb", "do_reduce_labels",
    "input_data_format", "processor_class", "return_tensors", "backend",
)  # fmt: skip


@dataclass(frozen=True)
class Folder:
    """What a folder says of its model.

    Attributes:
        path: The folder.
        config: The content of config.json.
        labels: The class names; empty if it has none.
        is_timm: Whether it is a model of timm; else it is one of transformers.
    """

    path: Path
    config: dict[str, Any]
    labels: tuple[str, ...]
    is_timm: bool


def read_folder(path: Path) -> Folder:
    """Return what a folder says of its model; raise ImportModelError if penult does not build such models."""
    if not (path / CONFIG).is_file():
        raise _refused(
            f"{path} is a folder without {CONFIG}; give a Hugging Face folder ({CONFIG}, {PREPROCESSOR}, "
            "model.safetensors), or a model's file"
        )
    config = _json(path / CONFIG)
    is_timm = isinstance(config.get("architecture"), str) and isinstance(config.get("pretrained_cfg"), dict)
    if not is_timm:
        _check_family(path, config)
    return Folder(path, config, _timm_labels(path, config) if is_timm else _labels(path, config), is_timm)


def _check_family(path: Path, config: Mapping[str, Any]) -> None:
    family = config.get("model_type")
    if family in _TRANSFORMERS:
        raise _refused(
            f"{path} has a transformer (model_type {family}), and penult builds CNNs only, whose descriptor is a layer "
            f"over conv maps; {_EXPORT}"
        )
    if family not in FAMILIES:
        raise _refused(
            f"{path}: model_type {family!r} of {CONFIG} is none of the CNNs that penult builds ({', '.join(FAMILIES)}, "
            f"and those of timm); {_EXPORT}"
        )
    named = config.get("architectures") or [""]
    if not str(named[0]).endswith("ForImageClassification"):
        raise _refused(
            f"{path}: architectures of {CONFIG} is {named[0]!r}, which has no classifier; give a folder of "
            "...ForImageClassification"
        )
    if config.get("problem_type") == "multi_label_classification":
        raise _refused(
            f"{path}: problem_type of {CONFIG} is multi_label_classification, so classes do not exclude each other; "
            "penult names one class"
        )
    if config.get("num_channels", 3) != 3:
        raise _refused(f"{path}: num_channels of {CONFIG} is {config['num_channels']}; penult reads RGB images")


def _labels(path: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of id2label; none if they are the numbers that transformers makes up."""
    names = config.get("id2label")
    if not isinstance(names, dict) or all(str(name) == f"LABEL_{number}" for number, name in names.items()):
        return ()
    return names_inside(json.dumps(names), f"id2label of {path / CONFIG}")


def _timm_labels(path: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names, or their descriptions if there are any, as for synsets."""
    inside = config["pretrained_cfg"]
    names = config.get("label_names") or inside.get("label_names")
    described = config.get("label_descriptions") or inside.get("label_descriptions")
    if not names or not isinstance(names, list | dict):
        return ()
    if isinstance(described, dict) and isinstance(names, list):
        names = [described.get(name, name) if isinstance(name, str) else name for name in names]
    return names_inside(json.dumps(names), f"label_names of {path / CONFIG}")


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise _refused(f"{path} is larger than {_MAX_BYTES >> 20} MiB; copy the folder again")
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _refused(f"{path} cannot be read: {why(error)}") from error
    except (ValueError, RecursionError) as error:
        raise _refused(f"{path} is not JSON ({error}); copy the folder again") from error
    if not isinstance(values, dict):
        raise _refused(f"{path} is not a JSON object; copy the folder again")
    return values


# -- preprocessing -----------------------------------------------------------------------------------------------------


def preprocess_of(folder: Path) -> Preprocess:
    """Return what preprocessor_config.json says, as penult computes it.

    Crops may be one pixel beside those of transformers if an odd number of pixels is cut off.

    Raises:
        ImportModelError: The file is missing, or a key asks for what penult does not do.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        raise _refused(f"{folder} has no {PREPROCESSOR}; copy it into the folder, or give --preprocess")
    values = {key: value for key, value in _json(path).items() if value is not None and not key.startswith("_")}
    try:
        return _Translation(path, values).result()
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise _refused(f"{path} cannot be read ({error}); give --preprocess instead") from error


class _Translation:
    """The values of a preprocessor_config.json, read key by key."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self._path, self._values = path, values
        self._kind = self._processor()
        unread = [key for key, value in values.items() if key not in (*_READ, *_IDLE) and value is not False]
        if unread:
            raise self._no(unread[0], "which penult does not do")

    def result(self) -> Preprocess:
        resize, crop, fit = self._sizes()
        mean, std = self._numbers()
        return Preprocess(resize, crop, self._filter(), mean, std, fit)

    def _processor(self) -> str:
        key = "image_processor_type" if "image_processor_type" in self._values else "feature_extractor_type"
        name = str(self._values.get(key, ""))
        short = name
        for ending in _ENDINGS:
            short = short.removesuffix(ending)
        if short not in _PROCESSORS:
            raise self._no(key, f"and penult knows those of {', '.join(_PROCESSORS)}")
        return short

    def _filter(self) -> str:
        code = self._needed("resample")
        if code not in _FILTERS:
            name = _OTHER_FILTERS.get(code, "unknown")
            raise self._no("resample", f"which is {name}; penult resizes {' and '.join(_FILTERS.values())}")
        return _FILTERS[code]

    def _sizes(self) -> tuple[int, int, str]:
        """Return resize, crop and fit."""
        if not self._values.get("do_resize", True):
            raise self._no("do_resize", "so images have no fixed size")
        size, is_shortest = self._size("size", self._kind not in _SQUARE)
        is_cropped = self._values.get("do_center_crop", self._kind not in (_CONVNEXT, *_SQUARE))
        if self._kind == _CONVNEXT:
            if is_cropped:
                raise self._no("do_center_crop", "which penult does not do after crop_pct")
            if not is_shortest:
                raise self._no("size", "without shortest_edge")
            if size >= _STRETCHED_FROM:
                return size, size, STRETCH
            return int(size / self._values.get("crop_pct", 224 / 256)), size, CROP
        if is_cropped:
            crop, _ = self._size("crop_size", False)
            if crop > size:
                raise self._no("crop_size", f"which is larger than the {size} pixels of size")
            return size, crop, CROP if is_shortest else STRETCH
        if is_shortest:
            raise self._no("do_center_crop", "so images are not square")
        return size, size, STRETCH

    def _size(self, key: str, is_shortest: bool) -> tuple[int, bool]:
        """Return the pixels of a size, and whether they are those of the shorter side; `is_shortest` for a number."""
        value = self._needed(key)
        if isinstance(value, Mapping):
            sides = {side: pixels for side, pixels in value.items() if pixels is not None}
            if set(sides) == {"shortest_edge"}:
                return int(sides["shortest_edge"]), True
            if set(sides) == {"height", "width"} and sides["height"] == sides["width"]:
                return int(sides["height"]), False
            raise self._no(key, "and penult makes square inputs")
        if not isinstance(value, int):
            raise self._no(key, "and penult makes square inputs")
        return value, is_shortest

    def _numbers(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Return mean and deviation for values of 0 to 1."""
        values = self._values
        mean, std = [0.0] * 3, [1.0] * 3
        if values.get("do_normalize", True):
            mean, std = self._three("image_mean"), self._three("image_std")
        # A processor scales pixels by `factor`, and maybe subtracts one.
        factor = float(values.get("rescale_factor", 1 / _PIXELS)) if values.get("do_rescale", True) else 1.0
        unit = _PIXELS * factor
        if self._kind == _EFFICIENTNET and values.get("do_rescale", True) and values.get("rescale_offset", False):
            mean = [each + 1 for each in mean]
        if self._kind == _EFFICIENTNET and values.get("include_top", True):
            # It divides by the deviation a second time.
            std = [each * second for each, second in zip(std, self._three("image_std"), strict=True)]
        red, green, blue = (each / unit for each in mean)
        of_red, of_green, of_blue = (each / unit for each in std)
        return (red, green, blue), (of_red, of_green, of_blue)

    def _three(self, key: str) -> list[float]:
        value = self._needed(key)
        numbers = [float(each) for each in value] if isinstance(value, list) else [float(value)] * 3
        if len(numbers) != 3:
            raise self._no(key, "and RGB images need three numbers")
        return numbers

    def _needed(self, key: str) -> Any:
        if key not in self._values:
            raise _refused(f"{self._path} has no {key}; add it, or give --preprocess")
        return self._values[key]

    def _no(self, key: str, reason: str) -> ImportModelError:
        shown = json.dumps(self._values.get(key))[:80]
        return _refused(f"{self._path}: {key} is {shown}, {reason}; give --preprocess instead")


def _refused(message: str) -> ImportModelError:
    return ImportModelError("HUGGING_FACE", message)
