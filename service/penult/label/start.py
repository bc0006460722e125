"""Begin to label: check the options, read the label file, describe the photos, and put the parts together."""

from pathlib import Path
from typing import Any

from penult.console import say
from penult.export.config import known_networks
from penult.export.disk import writing
from penult.export.jobs.frozen_descriptors import FrozenNetwork, of_model, of_weights
from penult.export.networks import weights_file
from penult.folders.names import PHOTOS, printable
from penult.folders.walk import walk
from penult.label import exchange
from penult.label.errors import LabelError
from penult.label.labels_file import Label, LabelsFile
from penult.label.pool import Pool, load_pool
from penult.label.publishing import Base, Collection, Publisher, train_command
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
        _add_labels(settings, file, pool)
        for line in file.notes:
            say(f"note: {line}")
        publisher = _publisher(settings, file, pool)
        return Session(pool, file, settings.classes, settings.seed, _facts(settings, file), publisher)
    except BaseException:
        file.close()
        raise


def export(settings: LabelSettings, network: FrozenNetwork) -> int:
    """Write labels, and guesses for the other photos, as Label Studio imports them; return how many photos there are.

    Raises:
        PenultError: The folder has no photos, or a file cannot be used.
    """
    assert settings.export
    session = session_of(settings, network)
    try:
        session.learn()
        with writing(settings.export):
            settings.export.write_bytes(session.label_studio())
        return len(session.pool.ids)
    finally:
        session.close()


def _add_labels(settings: LabelSettings, file: LabelsFile, pool: Pool) -> None:
    """Add the labels of another file and of a collection; images that have one keep it."""
    if settings.import_:
        for line in exchange.import_labels(file, settings.import_, settings.folder, pool.ids):
            say(line)
    if settings.from_collection:
        from penult.label import stored

        found = stored.labels_of(settings.target, settings.from_collection, _contents(pool))
        new = [Label(id_, label) for id_, label in found.labels.items() if id_ not in file.labels]
        file.put(new)
        for line in found.lines(settings.from_collection):
            say(line)


def _check_folder(folder: Path) -> None:
    """Raise LabelError for a folder without photos by their names, before a label file is made for it."""
    if not folder.is_dir():
        raise LabelError("FOLDER", f"{printable(str(folder))} is not a folder; give the folder of the photos")
    if next(walk(folder), None) is None:
        raise LabelError("FOLDER", f"{printable(str(folder))} holds no photo; give a folder of {PHOTOS} files")


def _facts(settings: LabelSettings, file: LabelsFile) -> dict[str, Any]:
    """Return what the page shows of the options."""
    model = settings.model_to_publish or Path("models") / settings.folder.resolve().name
    return {"train_command": train_command(file.train_arguments, model, _base(settings))}


def _publisher(settings: LabelSettings, file: LabelsFile, pool: Pool) -> Publisher | None:
    """Return what publishes and stores; None if neither a model nor a collection is named."""
    if settings.model_to_publish is None and not settings.collection:
        return None
    collection = Collection(settings.target, settings.collection, _contents(pool)) if settings.collection else None
    return Publisher(file, settings.folder, settings.model_to_publish, _base(settings), collection)


def _contents(pool: Pool) -> dict[str, str]:
    return {id_: photo.sha256 for id_, photo in zip(pool.ids, pool.photos, strict=True)}


def _base(settings: LabelSettings) -> Base:
    """Return the network of the first version."""
    if settings.model:
        return Base(settings.model, settings.version)
    return Base(arch=settings.arch, weights=settings.weights)
