"""The photos that settings name, split as a run splits them."""

from penult.export.config.photos import PhotoSource
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import Splits, load_splits


def splits_of(settings: TrainSettings) -> Splits:
    """Load the photos as `penult train` does; raise DataError."""
    return load_splits(PhotoSource.of(settings), settings.out, settings.val, settings.test, settings.seed)
