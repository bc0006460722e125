"""The output that has the class map of each image's best class, computed only for requests that name it."""

from collections.abc import Collection

import numpy as np

from penult.bundle.scores import Floats
from penult.service.inference.class_maps import RequestMaps
from penult.service.models.loader import ServedModel
from penult.service.oip.tensors import FP32, TensorSpec

CLASS_MAP = "class_map"


def class_map_specs(model: ServedModel) -> list[TensorSpec]:
    """Return the output float32 [N, h, w]; none for a model without exact maps."""
    support = model.manifest.class_maps
    if model.mapper is None or support is None:
        return []
    _, height, width = support.shape
    return [TensorSpec(CLASS_MAP, FP32, (-1, height, width))]


def maps_for(model: ServedModel, scorer: str, outputs: Collection[str], images: int) -> RequestMaps | None:
    """Return what gets the maps of a request, None if it does not name the output; raise LacksScorer."""
    return RequestMaps(model, scorer, images) if CLASS_MAP in outputs else None


def stacked_maps(maps: RequestMaps, images: int) -> Floats:
    """Return the map of each image's best class, float32 [N, h, w]."""
    return np.stack([maps.of(place)[0].values for place in range(images)])
