"""What is wrong with options, folders and files, found in a fraction of a second: before PyTorch is imported.

The run itself raises the same errors later; here they cost no time. Nothing in here, nor what it imports, imports
PyTorch, scikit-learn, onnxruntime or matplotlib.
"""

import ctypes
import importlib.metadata
import os
from pathlib import Path

from penult.bundle.naming import model_name, name_to_publish
from penult.bundle.reader import choose_version, read_manifest
from penult.export.config import known_networks
from penult.export.config.known_networks import Network
from penult.export.config.quantize import QuantizeSettings, check_precision
from penult.export.config.refit import RefitSettings, VersionSettings
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import check_folders
from penult.export.disk import try_file, try_folder
from penult.export.errors import SettingsError
from penult.export.networks import weights_file

# The folder of what --resume needs, beside the versions, where the service does not look.
UNFINISHED = ".training"
_DRIVER = "libcuda.so.1"


def check_training(settings: TrainSettings) -> None:
    """Raise PenultError, as a run or its plan would, for all that can be known without PyTorch."""
    name_to_publish(settings.out)
    network = known_networks.get(settings.arch)
    known_networks.preprocess(settings)
    weights_file.check(settings.weights, network)
    _check_whitening(settings.whiten, network)
    _check_device(settings.device)
    if os.environ.get("RANK", "0") != "0":
        return  # under torchrun, the first process looks at the disk for all
    check_folders(settings.data, settings.out, settings.val, settings.test)
    if not settings.dry_run:
        try_places(settings)


def check_next_version(settings: VersionSettings) -> None:
    """Raise PenultError as `penult svm` or `penult quantize` would, for all that can be known without their libraries.

    Model, version, photos and folder are checked; the files of the bundle are not.
    """
    name = model_name(settings.model)
    version = choose_version(settings.model, settings.version)
    manifest = read_manifest(settings.model / str(version))
    if isinstance(settings, QuantizeSettings):
        check_precision(manifest, name, version, settings.to)
    if not (isinstance(settings, RefitSettings) and settings.from_collection):
        check_folders(settings.data, settings.model, settings.val, settings.test)
    try_folder("MODEL", settings.model)


def try_places(settings: TrainSettings) -> None:
    """Write to wherever the run will write, before it learns; raise DiskError. Nothing is left there."""
    is_sweep = settings.sweep != "no"
    folder = sweep_folder(settings) if is_sweep else settings.out
    try_folder("--out", settings.out, folder, folder / UNFINISHED)
    if settings.tensorboard and not is_sweep:
        try_folder("--tensorboard", settings.tensorboard)
    if settings.save_weights and not is_sweep:
        try_file("--save-weights", settings.save_weights)


def sweep_folder(settings: TrainSettings) -> Path:
    """Return where a sweep's table and picture lie: beside the versions, where the service does not look."""
    return settings.out / f"sweep-{settings.sweep}"


def _check_whitening(wanted: int, network: Network) -> None:
    if wanted > network.descriptor_length:
        raise SettingsError(
            "WHITEN",
            f"--whiten {wanted}: descriptors of {network.name} have {network.descriptor_length:,} numbers; give less, "
            "a third of that or below",
        )


def _check_device(wanted: str) -> None:
    """Refuse --device cuda where PyTorch could not use one: its build is for CPUs, or NVIDIA's driver is absent."""
    if wanted != "cuda":
        return
    build = importlib.metadata.version("torch").partition("+")[2]
    if build == "cpu":
        raise SettingsError(
            "DEVICE",
            "--device cuda: PyTorch is installed in its build for CPUs; install the other, or use --device cpu",
        )
    if build.startswith("rocm"):
        return  # it calls AMD's devices cuda, and has another driver
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        raise SettingsError(
            "DEVICE", f"--device cuda: NVIDIA's driver ({_DRIVER}) is not there; check nvidia-smi, or use --device cpu"
        ) from None
