"""Class maps of a request's images. They are computed batch by batch, so that no feature map outlives its batch."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from penult.bundle.class_map import Area, ClassMap, area_of
from penult.bundle.errors import PenultError
from penult.bundle.scores import Floats
from penult.service.errors import InvalidRequest
from penult.service.inference.results import Outcome
from penult.service.models.class_maps import check_has_maps
from penult.service.models.loader import ServedModel

MAX_CLASSES = 100


class RequestMaps:
    """What maps a request asks for, and those of its images. Images are added from any thread, each once."""

    def __init__(
        self, model: ServedModel, scorer: str | None, images: int, labels: Sequence[str] = (), top: int = 1
    ) -> None:
        """Take what is asked for.

        Args:
            model: The model.
            scorer: What scores; None for the model's default.
            images: The number of images.
            labels: The classes; empty for the `top` best of each image.
            top: How many of them.

        Raises:
            LacksScorer: The model has no exact maps for the scorer.
            InvalidRequest: A label is no class of the model, or there are too many.
        """
        manifest = model.manifest
        self._scorer = scorer or manifest.default_scorer
        self.mapper = check_has_maps(model.name, model.version, manifest, model.mapper, self._scorer)
        self._head = self.mapper.heads[self._scorer]
        if len(labels) > MAX_CLASSES or not 1 <= top <= MAX_CLASSES:
            raise InvalidRequest(
                "MAP_COUNT", f"a request takes class maps of 1 to {MAX_CLASSES} classes; ask for fewer"
            )
        if len(set(labels)) < len(labels):
            raise InvalidRequest("MAP_LABEL", "a label of include_map is there twice; give each once")
        if unknown := [label for label in labels if label not in manifest.classes]:
            raise InvalidRequest(
                "MAP_LABEL", f"{model.name} has no class {unknown[0][:64]!r}, so there is no map of it; see GetModel"
            )
        self._columns = [manifest.classes.index(label) for label in labels]
        self._top, self._classes, self._spec = top, manifest.classes, manifest.preprocess
        self._areas: list[Area] = [(0.0, 0.0, 0.0, 0.0)] * images
        self._found: list[tuple[ClassMap, ...]] = [()] * images

    def saw(self, place: int, width: int, height: int, is_crop: bool) -> None:
        """Note the size of the image at `place`, upright, in pixels; a crop is seen as a whole."""
        whole = (0.0, 0.0, float(width), float(height))
        self._areas[place] = whole if is_crop else area_of(self._spec, width, height)

    def add(self, place: int, logits: Floats, descriptor: Floats, features: Floats) -> None:
        """Compute the maps of the image at `place` from its rows of the outputs.

        Args:
            place: The image.
            logits: float32 [classes].
            descriptor: float32 [length].
            features: float32 [views, channels, h, w].
        """
        columns = self._columns or self.mapper.best(self._scorer, logits, descriptor, self._top).tolist()
        maps = self._head.maps(features, descriptor, columns)
        self._found[place] = tuple(
            [
                ClassMap(self._classes[column], values, float(self._head.bias[column]), self._areas[place])
                for column, values in zip(columns, maps, strict=True)
            ]
        )

    def of(self, place: int) -> tuple[ClassMap, ...]:
        """Return the maps of the image at `place`."""
        return self._found[place]

    def added(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Return the outcomes of all images with their maps."""
        return [
            outcome if isinstance(outcome, PenultError) else replace(outcome, maps=self._found[place])
            for place, outcome in enumerate(outcomes)
        ]


def as_bytes(values: Floats) -> tuple[bytes, float, float]:
    """Return a map in a byte per place, with scale and zero: a contribution is zero + scale * byte.

    Zero is shifted by less than half a step, so that the sum of the map stays what it was.
    """
    low, high = float(values.min()), float(values.max())
    scale = (high - low) / 255
    steps = np.zeros(values.shape, np.uint8) if scale == 0 else np.rint((values - low) / scale).astype(np.uint8)
    zero = float(values.mean(dtype=np.float64)) - scale * float(steps.mean(dtype=np.float64))
    return steps.tobytes(), scale, zero
