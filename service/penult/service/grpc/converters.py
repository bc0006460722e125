"""Between penult.v1's messages and plain values, both ways, for the servicers; nothing here waits."""

from collections.abc import Mapping, Sequence

import grpc
import numpy as np

from penult.bundle.errors import ImageError, PenultError
from penult.bundle.manifest import DENSE, NOVELTY, SVM
from penult.bundle.scores import Floats
from penult.lookup.types import Condition, FieldType, Hit, Item, Value
from penult.service.errors import InvalidRequest, OtherModel, ServiceError, code_of
from penult.service.inference.collections import DEFAULT_K, Listed, Query
from penult.service.inference.decoder import EncodedPhoto, Photo, RawPhoto
from penult.service.inference.results import NEIGHBOURS, NOVEL, UNSURE, Outcome, Timings
from penult.service.models.loader import ServedModel
from penult.v1 import penult_pb2 as pb

SCORERS: dict[int, str | None] = {
    pb.SCORER_UNSPECIFIED: None,
    pb.SCORER_DENSE: DENSE,
    pb.SCORER_SVM: SVM,
    pb.SCORER_NEIGHBOURS: NEIGHBOURS,
    pb.SCORER_NOVELTY: NOVELTY,
}
SCORER_NUMBERS = {
    DENSE: pb.SCORER_DENSE,
    SVM: pb.SCORER_SVM,
    NEIGHBOURS: pb.SCORER_NEIGHBOURS,
    NOVELTY: pb.SCORER_NOVELTY,
}
_ABSTAIN_REASONS = {
    "": pb.ABSTAIN_REASON_UNSPECIFIED, UNSURE: pb.ABSTAIN_REASON_UNSURE, NOVEL: pb.ABSTAIN_REASON_NOVEL,
}  # fmt: skip
# Above every probability.
_NEVER = 2.0
_FIELD_TYPES: dict[pb.FieldType.ValueType, FieldType] = {
    pb.FIELD_TYPE_STRING: "string",
    pb.FIELD_TYPE_NUMBER: "number",
    pb.FIELD_TYPE_BOOLEAN: "boolean",
}
_FIELD_NUMBERS = {name: number for number, name in _FIELD_TYPES.items()}
_LARGEST_VALUE = 1e4

# -- what comes in -----------------------------------------------------------------------------------------------------


def photo(image: pb.Image) -> Photo | ImageError:
    """Return a photo, or that there is none."""
    match image.WhichOneof("source"):
        case "encoded":
            return EncodedPhoto(image.encoded)
        case "raw":
            return RawPhoto(image.raw.height, image.raw.width, image.raw.rgb, image.raw.is_crop)
        case _:
            return ImageError("IMAGE_EMPTY", "the image has no source; set `encoded` or `raw`")


def values(descriptor: pb.Descriptor, model: ServedModel) -> Floats | ServiceError:
    """Return float32 [length], or why these numbers cannot be scored."""
    if descriptor.fingerprint not in ("", model.fingerprint):
        return OtherModel(
            "DESCRIPTOR_FINGERPRINT", "the descriptor was made by another model; describe the photo again"
        )
    length = model.manifest.descriptor_length
    if len(descriptor.values) != length:
        return InvalidRequest(
            "DESCRIPTOR_LENGTH", f"the descriptor has {len(descriptor.values)} numbers; {model.name} makes {length}"
        )
    numbers = np.array(descriptor.values, dtype=np.float32)
    if not np.isfinite(numbers).all() or np.abs(numbers).max() > _LARGEST_VALUE:
        return InvalidRequest("DESCRIPTOR_VALUES", "the descriptor holds NaN, infinity or absurdly large numbers")
    return numbers


def check_count(count: int, most: int, what: str) -> None:
    """Raise InvalidRequest for no items, or too many."""
    if not 1 <= count <= most:
        raise InvalidRequest("REQUEST_COUNT", f"a request takes 1 to {most} {what}; this one has {count}")


def query(message: pb.NeighbourQuery) -> Query:
    """Return which items count as neighbours; raise InvalidRequest."""
    if not 0 <= message.max_distance <= 2:  # not for NaN either
        raise InvalidRequest("MAX_DISTANCE", "max_distance is 1 - cosine, 0 to 2")
    where = tuple(
        Condition(
            each.field,
            tuple(_value(value) for value in each.values),
            each.low if each.HasField("low") else None,
            each.high if each.HasField("high") else None,
        )
        for each in message.filter
    )
    return Query(message.collection, message.k or DEFAULT_K, where, message.max_distance)


def item(message: pb.Item, vector: Floats) -> Item:
    """Return an item with its descriptor."""
    metadata = {name: _value(value) for name, value in message.metadata.items()}
    return Item(message.id, vector, message.label, metadata, message.source, message.thumbnail)


def field_types(fields: Mapping[str, pb.FieldType.ValueType]) -> dict[str, FieldType]:
    """Return the fields that a collection declares, in order of name; raise InvalidRequest."""
    if any(kind not in _FIELD_TYPES for kind in fields.values()):
        raise InvalidRequest("COLLECTION_FIELDS", "each field needs a type: string, number or boolean")
    return {name: _FIELD_TYPES[kind] for name, kind in sorted(fields.items())}


# -- what goes out -----------------------------------------------------------------------------------------------------


def classified(outcome: Outcome, model: ServedModel, include_descriptor: bool) -> pb.ClassifyResult:
    """Return one photo's classes, or why there are none."""
    if isinstance(outcome, PenultError):
        return pb.ClassifyResult(error=item_error(outcome))
    best = outcome.classes[0]
    return pb.ClassifyResult(
        classification=pb.Classification(
            label=best.label,
            score=best.score,
            probability=best.probability,
            classes=[pb.ScoredClass(label=n, score=s, probability=p) for n, s, p in outcome.classes],
            descriptor_vector=descriptor(outcome.descriptor, model.fingerprint) if include_descriptor else None,
            neighbours=[_neighbour(hit) for hit in outcome.neighbours],
            novelty=outcome.novelty,
            is_novel=outcome.is_novel,
            abstained=outcome.abstained != "",
            abstain_reason=_ABSTAIN_REASONS[outcome.abstained],
        )
    )


def descriptor(numbers: Floats, fingerprint: str) -> pb.Descriptor:
    """Return a descriptor."""
    return pb.Descriptor(values=numbers.tolist(), fingerprint=fingerprint)


def item_error(error: PenultError) -> pb.ItemError:
    """Return why an item has no answer."""
    return pb.ItemError(code=grpc.StatusCode[code_of(error)].value[0], reason=error.reason, message=error.message)


def version(model: ServedModel) -> pb.ModelVersion:
    """Return the name of what answered."""
    return pb.ModelVersion(name=model.name, version=model.version, fingerprint=model.fingerprint)


def timings(seconds: Timings) -> pb.Timings:
    """Return where the time went."""
    return pb.Timings(
        decode_ms=1000 * seconds.decode,
        queue_ms=1000 * seconds.queue,
        inference_ms=1000 * seconds.inference,
        score_ms=1000 * seconds.score,
        total_ms=1000 * seconds.total,
    )


def neighbours(outcome: Sequence[Hit] | PenultError) -> pb.LookupResult:
    """Return one query's neighbours, or why there are none."""
    if isinstance(outcome, PenultError):
        return pb.LookupResult(error=item_error(outcome))
    return pb.LookupResult(neighbours=pb.Neighbours(neighbours=[_neighbour(hit) for hit in outcome]))


def stored(found: Item, fingerprint: str, with_descriptor: bool, with_thumbnail: bool) -> pb.Item:
    """Return a stored item."""
    return pb.Item(
        id=found.id,
        label=found.label,
        metadata=_metadata(found.metadata),
        descriptor_vector=descriptor(found.vector, fingerprint) if with_descriptor else None,
        source=found.source,
        thumbnail=found.thumbnail if with_thumbnail else b"",
    )


def collection(listed: Listed) -> pb.Collection:
    """Return what a collection is, and how much is in it."""
    spec, stats = listed.spec, listed.stats
    return pb.Collection(
        name=spec.name,
        items=stats.items,
        model=spec.model,
        fingerprint=spec.fingerprint,
        dimension=spec.dimension,
        metric=spec.metric,
        fields={name: _FIELD_NUMBERS[kind] for name, kind in spec.fields.items()},
        index=stats.index,
        memory_bytes=stats.memory_bytes,
        disk_bytes=stats.disk_bytes,
    )


def model_told(model: ServedModel) -> pb.Model:
    """Return all about a model."""
    spec = model.manifest.preprocess
    return pb.Model(
        version=version(model),
        architecture=model.manifest.architecture,
        classes=model.manifest.classes,
        preprocess=pb.Preprocess(
            resize=spec.resize,
            crop=spec.crop,
            interpolation=spec.interpolation,
            mean=spec.mean,
            std=spec.std,
            fit=spec.fit,
            colors=spec.colors,
        ),
        descriptor_length=model.manifest.descriptor_length,
        scorers=[SCORER_NUMBERS[scorer] for scorer in model.scorers],
        default_scorer=SCORER_NUMBERS[model.manifest.default_scorer],
        provider=model.session.provider,
        is_signed=bool(model.signer),
        novelty_threshold=threshold(model),
        operating_points=[
            pb.OperatingPoint(
                scorer=SCORER_NUMBERS[point.scorer],
                max_error=point.max_error,
                is_default=point.is_default,
                thresholds=[_NEVER if each is None else each for each in point.thresholds],
                photos=point.photos,
                answered=point.answered,
                wrong=point.wrong,
            )
            for point in model.manifest.operating_points
        ],
    )


def threshold(model: ServedModel) -> float | None:
    """Return the novelty above which a photo counts as novel; None without a baseline."""
    return model.baseline.threshold if model.baseline else None


def _neighbour(hit: Hit) -> pb.Neighbour:
    return pb.Neighbour(id=hit.id, label=hit.label, similarity=hit.similarity, metadata=_metadata(hit.metadata))


def _metadata(metadata: Mapping[str, Value]) -> dict[str, pb.Value]:
    return {name: _value_message(value) for name, value in metadata.items()}


def _value(message: pb.Value) -> Value:
    kind = message.WhichOneof("kind")
    if kind is None:
        raise InvalidRequest("METADATA_TYPE", "a value is empty; set `text`, `number` or `truth`")
    found: Value = getattr(message, kind)
    return found


def _value_message(value: Value) -> pb.Value:
    if isinstance(value, bool):
        return pb.Value(truth=value)
    return pb.Value(text=value) if isinstance(value, str) else pb.Value(number=value)
