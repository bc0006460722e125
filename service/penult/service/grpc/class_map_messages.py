"""Class maps between penult.v1's messages and plain values."""

from collections.abc import Iterable, Sequence

from penult.bundle.class_map import ClassMap
from penult.bundle.errors import PenultError
from penult.bundle.map_support import why_none
from penult.service.errors import InvalidRequest, LacksScorer
from penult.service.grpc.converters import SCORER_NUMBERS, SCORERS
from penult.service.inference.class_maps import RequestMaps, as_bytes
from penult.service.inference.results import NEIGHBOURS, Outcome
from penult.service.models.loader import ServedModel
from penult.v1 import penult_pb2 as pb

_FORMATS = tuple(pb.MapFormat.values())


def wanted(request: pb.ClassifyRequest, model: ServedModel) -> RequestMaps | None:
    """Return the maps that a request asks for, None for none; raise LacksScorer and InvalidRequest."""
    if not request.HasField("include_map"):
        return None
    query, scorer = request.include_map, SCORERS[request.scorer]
    if scorer == NEIGHBOURS:
        raise LacksScorer("CLASS_MAPS_MISSING", "a vote of neighbours has no class maps; ask for dense or svm")
    if query.format not in _FORMATS:
        raise InvalidRequest("MAP_FORMAT", "unknown format of class maps; leave it unset for a byte per place")
    return RequestMaps(model, scorer, len(request.images), query.labels, query.top or 1)


def put(results: Sequence[pb.ClassifyResult], outcomes: Iterable[Outcome], query: pb.MapQuery) -> None:
    """Put the maps of outcomes into their results."""
    is_exact = query.format == pb.MAP_FORMAT_FLOAT32
    for result, outcome in zip(results, outcomes, strict=True):
        if not isinstance(outcome, PenultError):
            result.classification.class_maps.extend([_message(each, is_exact) for each in outcome.maps])


def told(model: ServedModel) -> pb.ClassMaps:
    """Return which scorers of a model have exact maps, and why others have none."""
    support, heads = model.manifest.class_maps, model.mapper.heads if model.mapper else {}
    height, width = support.shape[1:] if support is not None and heads else (0, 0)
    missing = [
        pb.NoClassMaps(scorer=SCORER_NUMBERS[scorer], reason=why_none(support, scorer))
        for scorer in model.scorers
        if scorer not in heads
    ]
    return pb.ClassMaps(
        scorers=[SCORER_NUMBERS[scorer] for scorer in heads], missing=missing, height=height, width=width
    )


def _message(found: ClassMap, is_exact: bool) -> pb.ClassMap:
    height, width = found.values.shape
    left, top, right, bottom = found.area
    message = pb.ClassMap(
        label=found.label, height=height, width=width, offset=found.offset,
        area=pb.Area(left=left, top=top, right=right, bottom=bottom),
    )  # fmt: skip
    if is_exact:
        message.format, message.values = pb.MAP_FORMAT_FLOAT32, found.values.astype("<f4", copy=False).tobytes()
    else:
        message.format = pb.MAP_FORMAT_UINT8
        message.values, message.scale, message.zero = as_bytes(found.values)
    return message
