"""Build the classifier of a Hugging Face folder with the library that made it: transformers, or timm."""

import importlib
import importlib.metadata
import importlib.util
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from penult.export.config import known_networks
from penult.export.config.hugging_face import Folder, preprocess_of
from penult.export.errors import ImportModelError, SettingsError
from penult.export.networks import timm_networks, weights, weights_file
from penult.export.networks.classifiers import Classifier, Recipe, fill
from penult.extras import how_to_install

_SAFE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_OF_TIMM = (_SAFE, "pytorch_model.bin")
# Arguments of timm's networks that a folder may bring along; others could name files or addresses.
_TIMM_OPTIONS = ("act_layer", "drop_path_rate", "drop_rate", "global_pool", "img_size", "norm_layer")


def weights_of(folder: Path) -> list[Path]:
    """Return the files of a folder's weights."""
    found = [folder / name for name in _OF_TIMM if (folder / name).is_file()]
    return found[:1] or sorted(folder.glob("model-*-of-*.safetensors"))


def read(folder: Folder) -> Classifier:
    """Return the classifier of a folder; raise PenultError."""
    return _timm(folder) if folder.is_timm else _transformers(folder)


# -- timm --------------------------------------------------------------------------------------------------------------


def _timm(folder: Folder) -> Classifier:
    arch = f"{known_networks.TIMM}{folder.config['architecture']}"
    known_networks.get(arch)  # refuses what is no CNN
    options = _options(folder)
    given = folder.config["pretrained_cfg"]
    config = timm_networks.config_of(arch) | {key: value for key, value in given.items() if value is not None}
    size = list(config["input_size"])
    if size[0] != 3 or size[1] != size[2]:
        raise _refused(f"{folder.path}: input_size of config.json is {size}; penult makes square RGB inputs")
    spec, notes = timm_networks.preprocess_of(config, size[1])
    files = weights_of(folder.path)
    if not files:
        raise _refused(f"{folder.path} has no {' or '.join(_OF_TIMM)}; copy it into the folder")
    for note in notes:
        weights.say_once(f"note: {folder.path}: {note}")
    recipe = Recipe(
        arch, lambda classes: timm_networks.whole(arch, classes, options), timm_networks.made_by(), spec,
        f"config.json of {folder.path}",
    )  # fmt: skip
    shown = str(files[0])
    weights_file.check_file(files[0], shown)
    return fill(recipe, weights.read(shown, shown), shown)


def _options(folder: Folder) -> dict[str, Any]:
    """Return the arguments with which timm built the network."""
    options = dict(folder.config.get("model_args") or {})
    for key in ("num_classes", "in_chans"):  # the head and the first layer of the weights decide
        options.pop(key, None)
    pool = folder.config.get("global_pool")
    if isinstance(pool, str) and pool not in ("", "avg"):
        options.setdefault("global_pool", pool)
    for key, value in options.items():
        if key not in _TIMM_OPTIONS or not isinstance(value, str | int | float):
            raise _refused(
                f"{folder.path}: model_args of config.json has {key}, which penult does not pass on; export the model "
                "as ONNX, and import that file"
            )
    return options


# -- transformers ------------------------------------------------------------------------------------------------------


class _Logits(nn.Module):
    """A classifier of transformers that returns its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return cast("torch.Tensor", self.model(pixel_values=pixels).logits)


def _transformers(folder: Folder) -> Classifier:
    if importlib.util.find_spec("transformers") is None:
        raise SettingsError("HUGGING_FACE", f"{folder.path} needs transformers: {how_to_install('export,huggingface')}")
    if not (folder.path / _SAFE).is_file() and not (folder.path / _INDEX).is_file():
        raise _refused(
            f"{folder.path} has no {_SAFE}; copy it into the folder, or write it with model.save_pretrained() of a "
            "current transformers"
        )
    try:
        model, loaded = _load(folder.path)
    except Exception as error:  # of transformers, safetensors or PyTorch
        raise _refused(
            f"{folder.path} cannot be loaded by transformers {importlib.metadata.version('transformers')} "
            f"({_one_line(error)}); copy the folder again"
        ) from error
    _check_loaded(folder.path, loaded)
    try:
        spec, reason = preprocess_of(folder.path), ""
    except ImportModelError as error:
        spec, reason = None, error.message
    net = _Logits(model).eval().requires_grad_(False)
    return Classifier(
        net, int(model.config.num_labels), f"huggingface/{folder.config['model_type']}",
        f"transformers {importlib.metadata.version('transformers')}", spec,
        reason or f"preprocessor_config.json of {folder.path}",
    )  # fmt: skip


def _load(folder: Path) -> tuple[Any, Mapping[str, Any]]:
    """Return the model and what transformers says of its tensors, without a connection and without code of others."""
    with _offline():
        import transformers

        before, had_bar = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
        transformers.logging.set_verbosity(logging.CRITICAL)
        transformers.logging.disable_progress_bar()
        try:
            # A folder, and no connection: there is no revision to pin.
            model, loaded = transformers.AutoModelForImageClassification.from_pretrained(  # nosec B615
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32,
                output_loading_info=True,
            )  # fmt: skip
        finally:
            transformers.logging.set_verbosity(before)
            if had_bar:
                transformers.logging.enable_progress_bar()
    return model, loaded


@contextmanager
def _offline() -> Iterator[None]:
    """Let the hub's client refuse every connection."""
    # Not as an attribute of the package, which has it only once another part has imported it.
    constants: Any = importlib.import_module("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _check_loaded(folder: Path, loaded: Mapping[str, Any]) -> None:
    """Refuse weights that lack a tensor: transformers fills it with random numbers."""
    for key, problem in (
        ("missing_keys", "is missing"), ("mismatched_keys", "has another shape"), ("unexpected_keys", "is not of it"),
    ):  # fmt: skip
        if found := sorted(map(str, loaded.get(key) or ())):
            raise _refused(
                f"the weights in {folder} do not fit the network of config.json: {found[0][:80]} {problem}; copy the "
                "folder again"
            )
    if errors := loaded.get("error_msgs"):
        raise _refused(f"the weights in {folder} do not fit the network of config.json: {_one_line(errors[0])}")


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:160].rstrip(" .:;")


def _refused(message: str) -> ImportModelError:
    return ImportModelError("HUGGING_FACE", message)
