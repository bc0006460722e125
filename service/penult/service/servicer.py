"""penult.v1 to plain values and back. All translation between messages and the pipeline is in this file."""

from collections.abc import AsyncIterator, Sequence

import numpy as np

from penult.bundle.errors import ImageError, PenultError
from penult.bundle.manifest import DENSE, SVM
from penult.bundle.scores import Floats
from penult.service.answers import Outcome, Scored, Timings
from penult.service.config import ServeConfig
from penult.service.decoding import EncodedPhoto, Photo, RawPhoto
from penult.service.errors import InvalidRequest, OtherModel, ServiceError, code_of
from penult.service.loading import ServedModel
from penult.service.pipeline import DEFAULT_TOP_K, Pipeline
from penult.service.repository import Repository
from penult.service.streams import Context, expires, in_order
from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["PenultService"].full_name


_SCORERS: dict[int, str | None] = {pb.SCORER_UNSPECIFIED: None, pb.SCORER_DENSE: DENSE, pb.SCORER_SVM: SVM}
_SCORER_NUMBERS = {DENSE: pb.SCORER_DENSE, SVM: pb.SCORER_SVM}
_MOST_DESCRIPTORS = 4096
_LARGEST_VALUE = 1e4


class PenultServicer(penult_pb2_grpc.PenultServiceServicer):
    """The RPCs of penult.v1.PenultService. Errors are raised as PenultError; the interceptor maps them."""

    def __init__(self, repository: Repository, pipeline: Pipeline, config: ServeConfig) -> None:
        """Answer from these."""
        self._repository, self._pipeline, self._config = repository, pipeline, config

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        """Name photos."""
        model = self._model(request.model)
        if request.scorer not in _SCORERS:
            raise InvalidRequest("SCORER_UNKNOWN", "unknown scorer; use SCORER_DENSE, SCORER_SVM or leave it unset")
        photos = self._photos(request.images)
        scorer, outcomes, timings = await self._pipeline.classify(
            model, photos, _SCORERS[request.scorer], request.top_k or DEFAULT_TOP_K, expires(context)
        )
        return pb.ClassifyResponse(
            model=_version(model),
            scorer=_SCORER_NUMBERS[scorer],
            results=[_classified(outcome, model, request.include_descriptor) for outcome in outcomes],
            timings=_timings(timings),
        )

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        """Return descriptors."""
        model = self._model(request.model)
        photos = self._photos(request.images)
        outcomes, timings = await self._pipeline.describe(model, photos, expires(context))
        return pb.DescribeResponse(
            model=_version(model),
            results=[
                pb.DescribeResult(error=_error(o))
                if isinstance(o, PenultError)
                else pb.DescribeResult(descriptor=_descriptor(o.descriptor, model))
                for o in outcomes
            ],
            timings=_timings(timings),
        )

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """Score descriptors with the SVM."""
        model = self._model(request.model)
        _check_count(len(request.descriptors), _MOST_DESCRIPTORS, "descriptors")
        descriptors = [_values(descriptor, model) for descriptor in request.descriptors]
        outcomes, timings = await self._pipeline.score(model, descriptors, request.top_k or DEFAULT_TOP_K)
        return pb.ScoreResponse(
            model=_version(model),
            results=[_classified(outcome, model, include_descriptor=False) for outcome in outcomes],
            timings=_timings(timings),
        )

    async def StreamClassify(
        self, request_iterator: AsyncIterator[pb.ClassifyRequest], context: Context
    ) -> AsyncIterator[pb.ClassifyResponse]:
        """Classify request by request."""
        async for response in in_order(request_iterator, lambda request: self.Classify(request, context)):
            yield response

    async def StreamDescribe(
        self, request_iterator: AsyncIterator[pb.DescribeRequest], context: Context
    ) -> AsyncIterator[pb.DescribeResponse]:
        """Describe request by request."""
        async for response in in_order(request_iterator, lambda request: self.Describe(request, context)):
            yield response

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """List all models."""
        return pb.ListModelsResponse(models=[_model(model) for model in self._repository.all()])

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """Tell about one model."""
        return pb.GetModelResponse(model=_model(self._model(request.model)))

    def _model(self, selector: pb.ModelSelector) -> ServedModel:
        return self._repository.get(selector.name, selector.version)

    def _photos(self, images: Sequence[pb.Image]) -> list[Photo | ImageError]:
        _check_count(len(images), self._config.request_max_images, "images")
        return [_photo(image) for image in images]


def _photo(image: pb.Image) -> Photo | ImageError:
    match image.WhichOneof("source"):
        case "encoded":
            return EncodedPhoto(image.encoded)
        case "raw":
            return RawPhoto(image.raw.height, image.raw.width, image.raw.rgb, image.raw.is_crop)
        case _:
            return ImageError("IMAGE_EMPTY", "the image has no source; set `encoded` or `raw`")


def _values(descriptor: pb.Descriptor, model: ServedModel) -> Floats | ServiceError:
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
    values = np.array(descriptor.values, dtype=np.float32)
    if not np.isfinite(values).all() or np.abs(values).max() > _LARGEST_VALUE:
        return InvalidRequest("DESCRIPTOR_VALUES", "the descriptor holds NaN, infinity or absurdly large numbers")
    return values


def _check_count(count: int, most: int, what: str) -> None:
    if not 1 <= count <= most:
        raise InvalidRequest("REQUEST_COUNT", f"a request takes 1 to {most} {what}; this one has {count}")


def _classified(outcome: Outcome, model: ServedModel, include_descriptor: bool) -> pb.ClassifyResult:
    if isinstance(outcome, PenultError):
        return pb.ClassifyResult(error=_error(outcome))
    best = outcome.classes[0]
    return pb.ClassifyResult(
        classification=pb.Classification(
            label=best.label,
            score=best.score,
            probability=best.probability,
            classes=[_scored(scored) for scored in outcome.classes],
            descriptor=_descriptor(outcome.descriptor, model) if include_descriptor else None,
        )
    )


def _scored(scored: Scored) -> pb.ScoredClass:
    return pb.ScoredClass(label=scored.label, score=scored.score, probability=scored.probability)


def _descriptor(values: Floats, model: ServedModel) -> pb.Descriptor:
    return pb.Descriptor(values=values.tolist(), fingerprint=model.fingerprint)


def _error(error: PenultError) -> pb.ItemError:
    return pb.ItemError(code=code_of(error).value[0], reason=error.reason, message=error.message)


def _version(model: ServedModel) -> pb.ModelVersion:
    return pb.ModelVersion(name=model.name, version=model.version, fingerprint=model.fingerprint)


def _timings(timings: Timings) -> pb.Timings:
    return pb.Timings(**{f"{name}_ms": 1000 * seconds for name, seconds in vars(timings).items()})


def _model(model: ServedModel) -> pb.Model:
    spec = model.manifest.preprocess
    return pb.Model(
        version=_version(model),
        architecture=model.manifest.architecture,
        classes=model.manifest.classes,
        preprocess=pb.Preprocess(
            resize=spec.resize, crop=spec.crop, interpolation=spec.interpolation, mean=spec.mean, std=spec.std
        ),
        descriptor_length=model.manifest.descriptor_length,
        scorers=[_SCORER_NUMBERS[scorer] for scorer in model.scorers],
        default_scorer=_SCORER_NUMBERS[model.manifest.default_scorer],
        provider=model.session.provider,
        is_signed=False,
    )
