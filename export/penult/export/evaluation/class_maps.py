"""Make maps of a few photos: what places add to scores, or an occlusion map instead."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from penult.bundle.class_map import ClassMap, LinearHead
from penult.bundle.preprocess import Pixels
from penult.bundle.scores import Floats
from penult.console import progress
from penult.export.evaluation import occlusion

# Maps crops uint8 [n, size, size, 3] to feature maps float32 [n, views, channels, h, w] and descriptors [n, channels].
FeaturesOf = Callable[[Pixels], tuple[Floats, Floats]]


class PhotoMaps(Protocol):
    """Makes maps of photos for one scorer.

    Attributes:
        scorer: The scorer whose scores the maps explain.
        is_exact: True if the places of a map and its offset add up to the score.
        why_not: Why the default scorer has no exact maps; empty if it has.
        most: Of at most so many photos.
    """

    scorer: str
    is_exact: bool
    why_not: str
    most: int

    def of(self, crops: Pixels, columns: Sequence[Sequence[int]]) -> list[list[ClassMap]]:
        """Return maps of some classes of photos.

        Args:
            crops: uint8 [n, size, size, 3].
            columns: The classes of each photo.

        Returns:
            By photo, a map of each of its classes. Areas are in pixels of the crop.
        """
        ...


class ExactMaps:
    """Computes maps whose places and offset add up to the score, from the network's feature map."""

    is_exact, most = True, 18

    def __init__(
        self, scorer: str, classes: Sequence[str], head: LinearHead, features_of: FeaturesOf, why_not: str = ""
    ) -> None:
        """Explain the scores of a linear scorer.

        Args:
            scorer: Its name.
            classes: Its classes.
            head: Its weights.
            features_of: Runs the network.
            why_not: If another scorer is the default, why it has no exact maps.
        """
        self.scorer, self.why_not = scorer, why_not
        self._classes, self._head, self._features_of = classes, head, features_of

    def of(self, crops: Pixels, columns: Sequence[Sequence[int]]) -> list[list[ClassMap]]:
        """Return exact maps, as PhotoMaps says."""
        area = (0.0, 0.0, float(crops.shape[2]), float(crops.shape[1]))
        found = []
        for crop, wanted in zip(crops, columns, strict=True):  # one by one: the feature maps of all would be large
            features, descriptors = self._features_of(crop[None])
            values = self._head.maps(features[0], descriptors[0], wanted)
            offsets = (float(self._head.bias[column]) for column in wanted)
            found.append(
                [ClassMap(self._classes[c], v, o, area) for c, v, o in zip(wanted, values, offsets, strict=True)]
            )
        return found


class OcclusionMaps:
    """Hides places of photos in turn, which takes occlusion.RUNS runs of the network per photo."""

    is_exact, most = False, 6

    def __init__(
        self, scorer: str, why_not: str, classes: Sequence[str], scores_of: Callable[[Pixels], Floats]
    ) -> None:
        """Explain the scores [n, classes] that `scores_of` gives of crops uint8 [n, size, size, 3]."""
        self.scorer, self.why_not = scorer, why_not
        self._classes, self._scores_of = classes, scores_of

    def of(self, crops: Pixels, columns: Sequence[Sequence[int]]) -> list[list[ClassMap]]:
        """Return occlusion maps, as PhotoMaps says; they do not add up to the score, and have no offset."""
        area = (0.0, 0.0, float(crops.shape[2]), float(crops.shape[1]))
        found = []
        for crop, wanted in zip(progress(crops, "hiding places of photos", len(crops)), columns, strict=True):
            fall = occlusion.falls(self._scores_of, np.asarray(crop))
            found.append([ClassMap(self._classes[column], fall[column], 0.0, area) for column in wanted])
        return found
