"""penult.v1.PenultService: what each RPC asks of the pipeline, and of the collections."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from penult.bundle.errors import PenultError
from penult.service.errors import InvalidRequest, NoNeighbours
from penult.service.grpc import converters
from penult.service.grpc.collections_servicer import LookupServicer
from penult.service.grpc.streaming import Context, expires, in_order
from penult.service.inference.collections import Query
from penult.service.inference.pipeline import DEFAULT_TOP_K
from penult.service.inference.results import NEIGHBOURS, Answer, Outcome, Timings, voted
from penult.service.models.loader import ServedModel
from penult.v1 import penult_pb2 as pb

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["PenultService"].full_name
_MAX_DESCRIPTORS = 4096


class PenultServicer(LookupServicer):
    """The RPCs of penult.v1.PenultService. Errors are raised as PenultError; the interceptor maps them."""

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        """Name photos."""
        model = self._repository.get(request.model.name, request.model.version)
        if request.scorer not in converters.SCORERS:
            raise InvalidRequest("SCORER_UNKNOWN", "unknown scorer; leave it unset for the model's default")
        scorer, outcomes, timings = await self._classified(model, request, context)
        return pb.ClassifyResponse(
            model=converters.version(model),
            scorer=converters.SCORER_NUMBERS[scorer],
            results=[converters.classified(outcome, model, request.include_descriptor) for outcome in outcomes],
            timings=converters.timings(timings),
            novelty_threshold=converters.threshold(model),
        )

    async def _classified(
        self, model: ServedModel, request: pb.ClassifyRequest, context: Context
    ) -> tuple[str, list[Outcome], Timings]:
        """Return the scorer used and an outcome per photo, with neighbours where they are asked for."""
        scorer, top_k = converters.SCORERS[request.scorer], request.top_k or DEFAULT_TOP_K
        query = converters.query(request.neighbours) if request.HasField("neighbours") else None
        if scorer == NEIGHBOURS:
            if query is None:
                raise InvalidRequest(
                    "NEIGHBOURS_MISSING", "SCORER_NEIGHBOURS needs `neighbours`: which collection votes"
                )
            described, timings = await self._describe(model, request.images, context)
            found = await self._with_neighbours(model, query, described)
            return NEIGHBOURS, [_vote(outcome, top_k) for outcome in found], timings
        converters.check_count(len(request.images), self._request_max_images, "images")
        photos = [converters.photo(image) for image in request.images]
        chosen, outcomes, timings = await self._pipeline.classify(model, photos, scorer, top_k, expires(context))
        return chosen, await self._with_neighbours(model, query, outcomes) if query else outcomes, timings

    async def _with_neighbours(self, model: ServedModel, query: Query, outcomes: Sequence[Outcome]) -> list[Outcome]:
        good = [outcome.descriptor for outcome in outcomes if isinstance(outcome, Answer)]
        hits = iter(await self._neighbours(model, query, good))
        return [o if isinstance(o, PenultError) else replace(o, neighbours=tuple(next(hits))) for o in outcomes]

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        """Return descriptors."""
        model = self._repository.get(request.model.name, request.model.version)
        outcomes, timings = await self._describe(model, request.images, context)
        return pb.DescribeResponse(
            model=converters.version(model),
            results=[
                pb.DescribeResult(error=converters.item_error(o))
                if isinstance(o, PenultError)
                else pb.DescribeResult(descriptor=converters.descriptor(o.descriptor, model.fingerprint))
                for o in outcomes
            ],
            timings=converters.timings(timings),
        )

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """Score descriptors with the SVM."""
        model = self._repository.get(request.model.name, request.model.version)
        converters.check_count(len(request.descriptors), _MAX_DESCRIPTORS, "descriptors")
        descriptors = [converters.values(descriptor, model) for descriptor in request.descriptors]
        outcomes, timings = await self._pipeline.score(model, descriptors, request.top_k or DEFAULT_TOP_K)
        return pb.ScoreResponse(
            model=converters.version(model),
            results=[converters.classified(outcome, model, include_descriptor=False) for outcome in outcomes],
            timings=converters.timings(timings),
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
        return pb.ListModelsResponse(models=[converters.model_told(model) for model in self._repository.all()])

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """Return the properties of one model."""
        return pb.GetModelResponse(
            model=converters.model_told(self._repository.get(request.model.name, request.model.version))
        )


def _vote(outcome: Outcome, top_k: int) -> Outcome:
    if isinstance(outcome, PenultError):
        return outcome
    classes = voted(outcome.neighbours)[:top_k]
    if not classes:
        return NoNeighbours(
            "NO_NEIGHBOURS", "no labelled item is near enough to vote; add some, or allow more distance"
        )
    return replace(outcome, classes=classes)
