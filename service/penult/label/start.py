"""Begin to label: check the options, read the label file, describe the photos, and put the parts together."""

from pathlib import Path
from typing import Any

from penult.export.config import known_networks
from penult.export.jobs.frozen_descriptors import FrozenNetwork, of_model, of_weights
from penult.export.networks import weights_file
from penult.folders.names import printable
from penult.label.errors import LabelError
from penult.label.labels_file import LabelsFile
from penult.label.pool import load_pool
from penult.label.publishing import Base, Publisher, train_command
from penult.label.session import Session
from penult.label.settings import LabelSettings


def network_of(settings: LabelSettings) -> FrozenNetwork:
    """Return the network that describes photos; raise PenultError if it cannot be loaded."""
    if settings.model:
        return of_model(settings.model, settings.version)
    weights_file.check(settings.weights, known_networks.get(settings.arch))
    return of_weights(settings.arch, settings.weights)


def session_of(settings: LabelSettings, network: FrozenNetwork) -> Session:
    """Return the session of the options. The label file is locked before photos are described.

    Raises:
        PenultError: The folder has no photos, or the label file cannot be used.
    """
    _check_folder(settings.folder)
    file = LabelsFile(settings.labels, settings.folder)
    try:
        pool = load_pool(settings.folder, network)
        return Session(pool, file, settings.classes, settings.seed, _facts(settings), _publisher(settings))
    except BaseException:
        file.close()
        raise


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise LabelError("FOLDER", f"{printable(str(folder))} is not a folder; give the folder of the photos")


def _facts(settings: LabelSettings) -> dict[str, Any]:
    """Return what the page shows of the options."""
    model = settings.model_to_publish or Path("models") / settings.folder.resolve().name
    return {"train_command": train_command(settings.labels, settings.folder, model, _base(settings))}


def _publisher(settings: LabelSettings) -> Publisher | None:
    """Return what publishes; None if no model is named."""
    model = settings.model_to_publish
    return Publisher(settings.labels, settings.folder, model, _base(settings)) if model else None


def _base(settings: LabelSettings) -> Base:
    """Return the network of the first version."""
    if settings.model:
        return Base(settings.model, settings.version)
    return Base(arch=settings.arch, weights=settings.weights)
