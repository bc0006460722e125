"""Check options, folders and files before PyTorch is imported, in a fraction of a second.

The run raises the same errors later. This module must not import PyTorch, scikit-learn, onnxruntime or matplotlib.
"""

import ctypes
import importlib.metadata
import os
from pathlib import Path

from penult.bundle.naming import model_name, name_to_publish
from penult.bundle.preprocess import MAX_SIDE, Preprocess
from penult.bundle.reader import choose_version, read_manifest
from penult.export.config import known_networks, no_effect
from penult.export.config.calibrate import CalibrateSettings
from penult.export.config.compare import CompareSettings, check_comparable
from penult.export.config.hugging_face import read_folder
from penult.export.config.import_model import ImportSettings, read_labels, read_preprocess
from penult.export.config.inspect import InspectSettings
from penult.export.config.known_networks import Network
from penult.export.config.photos import PhotoSource
from penult.export.config.quantize import QuantizeSettings, check_precision, check_several
from penult.export.config.refit import RefitSettings, VersionSettings
from penult.export.config.train import PENULTIMATE, TrainSettings
from penult.export.data.dataset import check_photos
from penult.export.data.outliers import check_outliers
from penult.export.disk import check_file, check_folder
from penult.export.errors import SettingsError
from penult.export.networks import foreign_files, weights_file

# The folder of the checkpoint, beside the versions. The service ignores it.
UNFINISHED = ".training"
_DRIVER = "libcuda.so.1"


def check_training(settings: TrainSettings) -> None:
    """Raise the PenultError of a run or its plan for everything that can be checked without PyTorch."""
    name_to_publish(settings.out)
    if settings.budget_plan and not settings.budget_plan.is_file():
        raise SettingsError("BUDGET", f"--budget-plan {settings.budget_plan} does not exist; give a budget.json")
    if settings.budget and "arch" in settings.pinned:
        known_networks.get(settings.arch)
    if not (settings.budget or settings.budget_plan):
        _check_network(settings)
    _check_device(settings.device)
    if os.environ.get("RANK", "0") != "0":
        return  # under torchrun, the first process checks the disk for all
    classes = check_photos(PhotoSource.of(settings), settings.out, settings.val, settings.test)
    no_effect.refuse_for(settings, len(classes))
    if settings.outliers:
        check_outliers(settings.outliers)
    if not settings.dry_run:
        check_places(settings)


def _check_network(settings: TrainSettings) -> None:
    """Raise the SettingsError of weights and whitening that do not suit the network."""
    network = known_networks.get(settings.arch)
    known_networks.preprocess(settings)
    weights_file.check(settings.weights, network)
    known_networks.check_layers(settings)
    if settings.descriptor == PENULTIMATE:  # the others' lengths are known once the network is built
        _check_whitening(settings.whiten, network)


def check_inspection(settings: InspectSettings) -> None:
    """Raise the PenultError of `penult inspect` for everything that can be checked without its libraries."""
    if settings.model:
        choose_version(settings.model, settings.version)
    else:
        weights_file.check(settings.weights, known_networks.get(settings.arch))
    check_photos(PhotoSource.of(settings), settings.out, settings.val, settings.test)
    check_folder("--out", settings.out)


def check_comparison(settings: CompareSettings) -> None:
    """Raise the PenultError of `penult compare` for everything that can be checked without its libraries."""
    for version in settings.pair:
        manifest = read_manifest(settings.model / str(choose_version(settings.model, version)))
        check_comparable(manifest, version, settings.scorer)
    check_photos(PhotoSource.of(settings), settings.model, settings.val, settings.test)
    check_folder("--out", settings.folder)


def check_import(settings: ImportSettings) -> None:
    """Raise the PenultError of `penult import` for everything that can be checked without its libraries."""
    name_to_publish(settings.out)
    kind = foreign_files.kind_of(settings.source)
    if settings.labels:
        read_labels(settings.labels)
    if kind == foreign_files.HUGGING_FACE:
        read_folder(settings.source)
    if kind == foreign_files.CHECKPOINT:
        weights_file.check_file(settings.source, str(settings.source))
        if settings.arch.startswith(known_networks.TIMM):
            known_networks.get(settings.arch)
    if settings.preprocess or kind == foreign_files.ONNX:
        # Any size fits beside these until the network's own are known.
        own = None if kind == foreign_files.ONNX else Preprocess(resize=MAX_SIDE, crop=1)
        read_preprocess(settings.preprocess, 0, is_side_known=False, own=own)
    check_folder("--out", settings.out)


def check_next_version(settings: VersionSettings) -> None:
    """Raise the PenultError of `penult svm` or `penult quantize` that can be found without their libraries.

    Model, version, photos and folder are checked. The files of the bundle are not.
    """
    name = model_name(settings.model)
    version = choose_version(settings.model, settings.version)
    manifest = read_manifest(settings.model / str(version))
    if isinstance(settings, QuantizeSettings):
        check_precision(manifest, name, version, settings.to)
    refit = settings if isinstance(settings, RefitSettings) else None
    if not (refit and refit.from_collection):
        classes = check_photos(PhotoSource.of(settings), settings.model, settings.val, settings.test)
        if refit:
            no_effect.refuse_for(refit, len(classes))
        else:
            check_several(classes)
        if refit and refit.outliers:
            check_outliers(refit.outliers)
    if refit and refit.out:
        name_to_publish(refit.out)
        check_folder("--out", refit.out)
    else:
        check_folder("MODEL", settings.model)


def check_calibration(settings: CalibrateSettings) -> None:
    """Raise the PenultError of `penult calibrate` for everything that can be checked without its libraries."""
    choose_version(settings.model, settings.version)
    check_photos(PhotoSource.of(settings), settings.model)
    check_folder("MODEL", settings.model)


def check_places(settings: TrainSettings) -> None:
    """Try every place that the run will write to, and leave no files there; raise DiskError."""
    is_sweep = settings.sweep != "no"
    folder = sweep_folder(settings) if is_sweep else settings.out
    check_folder("--out", settings.out, folder, folder / UNFINISHED)
    if settings.tensorboard and not is_sweep:
        check_folder("--tensorboard", settings.tensorboard)
    if settings.save_weights and not is_sweep:
        check_file("--save-weights", settings.save_weights)


def sweep_folder(settings: TrainSettings) -> Path:
    """Return the folder of a sweep's table and plot, beside the versions. The service ignores it."""
    return settings.out / f"sweep-{settings.sweep}"


def budget_folder(settings: TrainSettings) -> Path:
    """Return the folder of the table, the plot and the plan of --budget, beside the versions."""
    return settings.out / "budget"


def _check_whitening(wanted: int, network: Network) -> None:
    if wanted > network.descriptor_length:
        raise SettingsError(
            "WHITEN",
            f"--whiten {wanted}: descriptors of {network.name} have {network.descriptor_length:,} numbers; give at "
            "most a third of that",
        )


def _check_device(wanted: str) -> None:
    """Raise SettingsError for --device cuda if PyTorch is built for CPUs or NVIDIA's driver is missing."""
    if wanted != "cuda":
        return
    build = importlib.metadata.version("torch").partition("+")[2]
    if build == "cpu":
        raise SettingsError(
            "DEVICE",
            "--device cuda: the installed PyTorch is a CPU build; install the CUDA build, or use --device cpu",
        )
    if build.startswith("rocm"):
        return  # ROCm calls AMD's devices cuda, and has another driver
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        raise SettingsError(
            "DEVICE", f"--device cuda: NVIDIA's driver ({_DRIVER}) is missing; check nvidia-smi, or use --device cpu"
        ) from None
