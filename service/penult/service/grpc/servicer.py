"""penult.v1.PenultService: what each RPC asks of the pipeline, and of the collections."""

from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np

from penult.bundle.errors import PenultError
from penult.bundle.manifest import NOVELTY, SVM
from penult.bundle.scores import Floats
from penult.lookup.checks import MAX_ITEMS, MAX_QUERIES
from penult.lookup.types import CollectionSpec, Hit
from penult.service.errors import InvalidRequest, NoNeighbours, NotFound, OtherModel
from penult.service.grpc import class_map_messages, converters, feedback_messages
from penult.service.grpc.streaming import Context, expires, in_order
from penult.service.inference.abstaining import AnswerLimits, answer_limits
from penult.service.inference.class_maps import RequestMaps
from penult.service.inference.collections import Collections, Query
from penult.service.inference.feedback import FeedbackDesk, check_id
from penult.service.inference.pipeline import DEFAULT_TOP_K, Pipeline
from penult.service.inference.results import NEIGHBOURS, Answer, Outcome, Timings, voted
from penult.service.models.loader import ServedModel
from penult.service.models.registry import ModelRegistry
from penult.service.observability.logs import request_id
from penult.service.suspension import on_event_loop
from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc

# Their coroutines run on the thread that received the request, see penult.service.suspension.
DIRECT = ("Classify", "Describe")
SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["PenultService"].full_name
_MAX_DESCRIPTORS = 4096
_DEFAULT_PAGE = 100
# The share of a message that an answer may fill; names and lengths need the rest.
_FILL = 0.9


class PenultServicer(penult_pb2_grpc.PenultServiceServicer):
    """The RPCs of penult.v1.PenultService. Errors are raised as PenultError; the interceptor maps them."""

    def __init__(
        self, repository: ModelRegistry, pipeline: Pipeline, collections: Collections, request_max_images: int,
        message_max_bytes: int, feedback: FeedbackDesk,
    ) -> None:  # fmt: skip
        """Answer from these."""
        self._repository = repository
        self._pipeline = pipeline
        self._collections = collections
        self._request_max_images = request_max_images
        self._message_max_bytes = message_max_bytes
        self._feedback = feedback

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        """Name photos."""
        return await self._classify(request, context, request_id.get())

    async def _classify(self, request: pb.ClassifyRequest, context: Context, key: str) -> pb.ClassifyResponse:
        """Name photos; feedback finds the answers by `key`."""
        _check_ids(request)
        model = self._repository.get(request.model.name, request.model.version)
        if request.scorer not in converters.SCORERS:
            raise InvalidRequest("SCORER_UNKNOWN", "unknown scorer; leave it unset for the model's default")
        limits = None
        if model.manifest.operating_points or request.max_error:
            limits = answer_limits(model, converters.SCORERS[request.scorer], request.max_error)
        maps = class_map_messages.wanted(request, model)
        scorer, outcomes, timings = await self._classified(model, request, limits, maps, context)
        if scorer != NEIGHBOURS:  # a collection may name classes that the model does not have
            answers = self._feedback.answers
            is_needed = answers.needs_photos(model, scorer, key)
            photos = [converters.photo(image) for image in request.images] if is_needed else ()
            seconds = timings.decode + timings.inference + timings.score
            answers.remember(model, outcomes, photos, request.image_ids, key, scorer, seconds)
        results = [converters.classified(outcome, model, request.include_descriptor) for outcome in outcomes]
        if maps:
            class_map_messages.put(results, outcomes, request.include_map)
        return pb.ClassifyResponse(
            request_id=key,
            model=converters.version(model),
            scorer=converters.SCORER_NUMBERS[scorer],
            results=results,
            timings=converters.timings(timings),
            novelty_threshold=converters.threshold(model),
            max_error=limits.max_error if limits else None,
        )

    async def _classified(
        self, model: ServedModel, request: pb.ClassifyRequest, limits: AnswerLimits | None, maps: RequestMaps | None,
        context: Context,
    ) -> tuple[str, list[Outcome], Timings]:  # fmt: skip
        """Return the scorer used and an outcome per photo, with neighbours where they are asked for."""
        scorer, top_k = converters.SCORERS[request.scorer], request.top_k or DEFAULT_TOP_K
        query = converters.query(request.neighbours) if request.HasField("neighbours") else None
        if query:
            await on_event_loop()  # collections need it
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
        chosen, outcomes, timings = await self._pipeline.classify(
            model, photos, scorer, top_k, expires(context), limits, maps
        )
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
                else pb.DescribeResult(descriptor_vector=converters.descriptor(o.descriptor, model.fingerprint))
                for o in outcomes
            ],
            timings=converters.timings(timings),
        )

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """Score descriptors with the SVM."""
        model = self._repository.get(request.model.name, request.model.version)
        converters.check_count(len(request.descriptors), _MAX_DESCRIPTORS, "descriptors")
        descriptors = [converters.values(descriptor, model) for descriptor in request.descriptors]
        limits = answer_limits(model, NOVELTY if model.manifest.has_one_class else SVM, request.max_error)
        outcomes, timings = await self._pipeline.score(model, descriptors, request.top_k or DEFAULT_TOP_K, limits)
        return pb.ScoreResponse(
            model=converters.version(model),
            results=[converters.classified(outcome, model, include_descriptor=False) for outcome in outcomes],
            timings=converters.timings(timings),
            max_error=limits.max_error if limits else None,
        )

    async def StreamClassify(
        self, request_iterator: AsyncIterator[pb.ClassifyRequest], context: Context
    ) -> AsyncIterator[pb.ClassifyResponse]:
        """Classify request by request."""
        key, places = request_id.get(), count()

        def act(request: pb.ClassifyRequest) -> Coroutine[Any, Any, pb.ClassifyResponse]:
            return self._classify(request, context, f"{key}.{next(places)}")

        async for response in in_order(request_iterator, act):
            yield response

    async def StreamDescribe(
        self, request_iterator: AsyncIterator[pb.DescribeRequest], context: Context
    ) -> AsyncIterator[pb.DescribeResponse]:
        """Describe request by request."""
        async for response in in_order(request_iterator, lambda request: self.Describe(request, context)):
            yield response

    async def Feedback(self, request: pb.FeedbackRequest, context: Context) -> pb.FeedbackResponse:
        """Count verdicts about answers."""
        return await feedback_messages.answer(self._feedback, request)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """List all models."""
        return pb.ListModelsResponse(models=[_told(model) for model in self._repository.all()])

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """Return the properties of one model."""
        return pb.GetModelResponse(model=_told(self._repository.get(request.model.name, request.model.version)))

    async def Lookup(self, request: pb.LookupRequest, context: Context) -> pb.LookupResponse:
        """Find neighbours of photos, or of descriptors."""
        query = converters.query(request.query)
        if bool(request.images) == bool(request.descriptors):
            raise InvalidRequest("LOOKUP_QUERY", "give either images or descriptors")
        spec = await self._spec(query.collection)
        if request.descriptors:
            converters.check_count(len(request.descriptors), MAX_QUERIES, "descriptors")
            outcomes = [_vector(descriptor, spec.fingerprint) for descriptor in request.descriptors]
            found = await self._collections.find(query, outcomes, spec.fingerprint)
            return pb.LookupResponse(results=[converters.neighbours(hits) for hits in found])
        model = self._model_for(request.model, spec)
        described, timings = await self._describe(model, request.images, context)
        good = [outcome.descriptor for outcome in described if isinstance(outcome, Answer)]
        hits = iter(await self._neighbours(model, query, good))
        neighbours: list[Sequence[Hit] | PenultError] = [
            o if isinstance(o, PenultError) else next(hits) for o in described
        ]
        return pb.LookupResponse(
            model=converters.version(model),
            results=[converters.neighbours(each) for each in neighbours],
            timings=converters.timings(timings),
        )

    async def PutItems(self, request: pb.PutItemsRequest, context: Context) -> pb.PutItemsResponse:
        """Store items."""
        converters.check_count(len(request.items), MAX_ITEMS, "items")
        model = self._repository.get(request.model.name, request.model.version)
        fields = converters.field_types(request.fields)
        outcomes = await self._vectors(model, request.items, context)
        items = [
            converters.item(message, outcome)
            for message, outcome in zip(request.items, outcomes, strict=True)
            if not isinstance(outcome, PenultError)
        ]
        if items:
            await self._collections.put(request.collection, model.fingerprint, model.name, items, fields)
        results = [
            pb.PutItemResult(error=converters.item_error(o) if isinstance(o, PenultError) else None) for o in outcomes
        ]
        return pb.PutItemsResponse(model=converters.version(model), results=results)

    async def DeleteItems(self, request: pb.DeleteItemsRequest, context: Context) -> pb.DeleteItemsResponse:
        """Remove items."""
        return pb.DeleteItemsResponse(deleted=await self._collections.delete(request.collection, list(request.ids)))

    async def GetItems(self, request: pb.GetItemsRequest, context: Context) -> pb.GetItemsResponse:
        """Return items by id, or a page of them."""
        spec = await self._spec(request.collection)
        if request.ids:
            found = await self._collections.get(spec.name, list(request.ids))
        else:
            found = await self._collections.scan(spec.name, request.after, request.limit or _DEFAULT_PAGE)
        items: list[pb.Item] = []
        room = _FILL * self._message_max_bytes
        for each in found:
            item = converters.stored(each, spec.fingerprint, request.include_descriptors, request.include_thumbnails)
            room -= item.ByteSize()
            if room < 0 and items:
                if request.ids:
                    raise InvalidRequest("ITEM_COUNT", "so many items exceed a message; ask for fewer at a time")
                break  # the next page begins behind the last that fitted
            items.append(item)
        return pb.GetItemsResponse(items=items)

    async def ListCollections(self, request: pb.ListCollectionsRequest, context: Context) -> pb.ListCollectionsResponse:
        """List all collections."""
        return pb.ListCollectionsResponse(
            collections=[converters.collection(each) for each in await self._collections.all()]
        )

    async def DropCollection(self, request: pb.DropCollectionRequest, context: Context) -> pb.DropCollectionResponse:
        """Remove a collection."""
        await self._collections.drop(request.collection)
        return pb.DropCollectionResponse()

    async def ReplaceCollection(
        self, request: pb.ReplaceCollectionRequest, context: Context
    ) -> pb.ReplaceCollectionResponse:
        """Give one collection the name of another."""
        await self._collections.replace(request.collection, request.by)
        return pb.ReplaceCollectionResponse()

    async def _neighbours(self, model: ServedModel, query: Query, descriptors: Sequence[Floats]) -> list[list[Hit]]:
        """Return the stored items nearest to descriptors of a model's, float32 [length]."""
        found = await self._collections.find(query, descriptors, model.fingerprint) if descriptors else []
        self._pipeline.record_neighbours(model, found)
        return found

    async def _spec(self, name: str) -> CollectionSpec:
        spec = await self._collections.spec(name)
        if spec is None:
            raise NotFound("COLLECTION_UNKNOWN", f"there is no collection {name}; penult index add makes one")
        return spec

    def _model_for(self, selector: pb.ModelSelector, spec: CollectionSpec) -> ServedModel:
        """Return the model that is asked for; without a name, the newest whose descriptors the collection holds."""
        if not selector.name:
            fitting = [model for model in self._repository.all() if model.fingerprint == spec.fingerprint]
            if fitting:
                return fitting[-1]
        return self._repository.get(selector.name, selector.version)

    async def _describe(
        self, model: ServedModel, images: Sequence[pb.Image], context: Context
    ) -> tuple[list[Outcome], Timings]:
        converters.check_count(len(images), self._request_max_images, "images")
        photos = [converters.photo(image) for image in images]
        return await self._pipeline.describe(model, photos, expires(context))

    async def _vectors(
        self, model: ServedModel, items: Sequence[pb.Item], context: Context
    ) -> list[Floats | PenultError]:
        """Return each item's descriptor, described here or before."""
        images = [item.image for item in items if item.WhichOneof("what") == "image"]
        described = iter((await self._describe(model, images, context))[0] if images else ())
        found: list[Floats | PenultError] = []
        for item in items:
            match item.WhichOneof("what"):
                case "image":
                    outcome = next(described)
                    found.append(outcome.descriptor if isinstance(outcome, Answer) else outcome)
                case "descriptor_vector":
                    found.append(_vector(item.descriptor_vector, model.fingerprint))
                case _:
                    raise InvalidRequest("ITEM_EMPTY", f"item {len(found)} has neither image nor descriptor")
        return found


def _told(model: ServedModel) -> pb.Model:
    """Return the properties of a model."""
    message = converters.model_told(model)
    message.class_maps.CopyFrom(class_map_messages.told(model))
    return message


def _check_ids(request: pb.ClassifyRequest) -> None:
    """Raise InvalidRequest unless each image has an id, or none has one."""
    if request.image_ids and len(request.image_ids) != len(request.images):
        raise InvalidRequest("IMAGE_IDS", "give an id for each image, empty for none, or leave image_ids out")
    for image_id in request.image_ids:
        check_id(image_id)


def _vote(outcome: Outcome, top_k: int) -> Outcome:
    if isinstance(outcome, PenultError):
        return outcome
    classes = voted(outcome.neighbours)[:top_k]
    if not classes:
        return NoNeighbours(
            "NO_NEIGHBOURS", "no labelled item is near enough to vote; add some, or allow more distance"
        )
    return replace(outcome, classes=classes)


def _vector(descriptor: pb.Descriptor, fingerprint: str) -> Floats:
    if descriptor.fingerprint not in ("", fingerprint):
        raise OtherModel("DESCRIPTOR_FINGERPRINT", "the descriptor was made by another model; describe the photo again")
    return np.array(descriptor.values, dtype=np.float32)
