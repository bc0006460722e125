"""A mix of everything that clients send, a fifth of it bad, and the codes that each may end with."""

import asyncio
import io
import random
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from tests.attacks.http2 import CLASSIFY, STREAM_CLASSIFY, Connection, data, message, opening

from penult.oip import grpc_service_pb2 as oip
from penult.oip import grpc_service_pb2_grpc as oip_grpc
from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc

# What the tests' model looks at, in pixels a side.
SIDE = 8
_SERVICE = "/penult.v1.PenultService/"
_COLLECTION, _IDS = "soak", 100
_WAIT_S = 60.0
OK, INVALID = "OK", "INVALID_ARGUMENT"


def grey(level: int, side: int = SIDE) -> bytes:
    """Return a PNG of one grey level."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (level,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


class Kind(NamedTuple):
    """One kind of request: how often it comes, how it is asked, how it may end."""

    weight: float
    ask: Callable[[], Awaitable[object]]
    ends: set[str]


class Mix:
    """Asks a server of the model `light` all kinds of things, from one event loop."""

    def __init__(self, target: str, http: str, photos: tuple[bytes, ...], seed: int = 0) -> None:
        """Send `photos`, which are good ones; connected in an `async with` block."""
        self._target, self._http, self._photos, self._random = target, http, photos, random.Random(seed)
        self.counts: Counter[tuple[str, str]] = Counter()
        good, bad = self._good(), self._bad()
        self.kinds = good | bad
        self.bad = set(bad)

    async def __aenter__(self) -> Self:
        """Connect; store some items, so that lookups find something."""
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.aio.insecure_channel(self._target, options=options)
        self._stub = penult_pb2_grpc.PenultServiceStub(self._channel)
        self._oip = oip_grpc.GRPCInferenceServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        await self._put()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect."""
        await self._channel.close()

    @property
    def asked(self) -> int:
        """How many requests are over."""
        return sum(self.counts.values())

    def wrong(self) -> dict[tuple[str, str], int]:
        """Return the requests that ended as they may not."""
        return {key: count for key, count in self.counts.items() if key[1] not in self.kinds[key[0]].ends}

    async def one(self) -> None:
        """Ask one thing, by chance, and count how it ended."""
        names = list(self.kinds)
        (name,) = self._random.choices(names, [self.kinds[name].weight for name in names])
        try:
            await self.kinds[name].ask()
            code = OK
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        except asyncio.CancelledError:
            code = "CANCELLED"
        self.counts[name, code] += 1

    # -- four fifths -------------------------------------------------------------------------------------------------

    def _good(self) -> dict[str, Kind]:
        ok = {OK}
        return {
            "classify": Kind(26, lambda: self._stub.Classify(self._classify(1), timeout=_WAIT_S), ok),
            "classify many": Kind(4, lambda: self._stub.Classify(self._classify(8), timeout=_WAIT_S), ok),
            "describe": Kind(10, self._describe, ok),
            "lookup": Kind(10, self._lookup, ok),
            "score": Kind(8, self._score, ok),
            "put": Kind(3, self._put, ok),
            "stream": Kind(4, self._stream, ok),
            "models": Kind(3, lambda: self._stub.ListModels(pb.ListModelsRequest(), timeout=_WAIT_S), ok),
            "oip": Kind(8, self._infer, ok),
            "health": Kind(3, lambda: self._health.Check(health_pb2.HealthCheckRequest(), timeout=_WAIT_S), ok),
            "metrics": Kind(1, self._scrape, ok),
        }

    def _photo(self) -> bytes:
        return self._random.choice(self._photos)

    def _classify(self, count: int, **fields: object) -> pb.ClassifyRequest:
        return pb.ClassifyRequest(images=[pb.Image(encoded=self._photo()) for _ in range(count)], **fields)

    async def _describe(self) -> None:
        request = pb.DescribeRequest(images=[pb.Image(encoded=self._photo())])
        await self._stub.Describe(request, timeout=_WAIT_S)

    async def _lookup(self) -> None:
        await self._look_up_in(_COLLECTION)

    async def _look_up_in(self, collection: str) -> None:
        query = pb.NeighbourQuery(collection=collection, k=5)
        request = pb.LookupRequest(images=[pb.Image(encoded=self._photo())], query=query)
        await self._stub.Lookup(request, timeout=_WAIT_S)

    async def _score(self) -> None:
        descriptor = pb.Descriptor(values=[self._random.random() for _ in range(3)])
        await self._stub.Score(pb.ScoreRequest(descriptors=[descriptor]), timeout=_WAIT_S)

    async def _put(self) -> None:
        items = [
            pb.Item(id=f"i{self._random.randrange(_IDS)}-{n}", label="a", image=pb.Image(encoded=self._photo()))
            for n in range(3)
        ]
        await self._stub.PutItems(pb.PutItemsRequest(collection=_COLLECTION, items=items), timeout=_WAIT_S)

    async def _stream(self) -> None:
        call = self._stub.StreamClassify(iter([self._classify(2) for _ in range(3)]), timeout=_WAIT_S)
        async for _ in call:
            pass

    async def _infer(self) -> None:
        contents = oip.InferTensorContents(bytes_contents=[self._photo()])
        photo = oip.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1], contents=contents)
        await self._oip.ModelInfer(oip.ModelInferRequest(model_name="light", inputs=[photo]), timeout=_WAIT_S)

    async def _scrape(self) -> None:
        await asyncio.to_thread(lambda: urllib.request.urlopen(f"{self._http}/metrics", timeout=_WAIT_S).read())

    # -- one fifth ---------------------------------------------------------------------------------------------------

    def _bad(self) -> dict[str, Kind]:
        return {
            "broken message": Kind(3, lambda: self._raw("Classify", self._random.randbytes(40)), {INVALID}),
            "broken photo": Kind(3, lambda: self._stub.Classify(self._broken(), timeout=_WAIT_S), {OK}),
            "no photo": Kind(1, lambda: self._stub.Classify(pb.ClassifyRequest(), timeout=_WAIT_S), {INVALID}),
            "wrong model": Kind(2, lambda: self._named("nobody"), {"NOT_FOUND"}),
            "wrong name": Kind(1, lambda: self._named("../../etc"), {"NOT_FOUND", INVALID}),
            "wrong scorer": Kind(
                1, lambda: self._stub.Classify(self._classify(1, scorer=77), timeout=_WAIT_S), {INVALID}
            ),
            "wrong method": Kind(1, lambda: self._raw("Nothing", b""), {"UNIMPLEMENTED"}),
            "wrong collection": Kind(1, lambda: self._look_up_in("none"), {"NOT_FOUND"}),
            "too large": Kind(0.05, lambda: self._raw("Classify", bytes((64 << 20) + 1)), {"RESOURCE_EXHAUSTED"}),
            "cancelled": Kind(3, self._cancel, {"CANCELLED", OK}),
            "expired": Kind(
                2,
                lambda: self._stub.Classify(self._classify(8), timeout=0.0005),
                {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", OK},
            ),
            "killed": Kind(2, lambda: asyncio.to_thread(self._die), {OK}),
        }

    async def _raw(self, method: str, request: bytes) -> None:
        await self._channel.unary_unary(_SERVICE + method)(request, timeout=_WAIT_S)

    def _broken(self) -> pb.ClassifyRequest:
        photo = bytearray(self._photo())
        photo[self._random.randrange(len(photo))] ^= 0xFF
        return pb.ClassifyRequest(images=[pb.Image(encoded=bytes(photo)), pb.Image(encoded=b"no photo")])

    async def _named(self, name: str) -> None:
        await self._stub.Classify(self._classify(1, model=pb.ModelSelector(name=name)), timeout=_WAIT_S)

    async def _cancel(self) -> None:
        call = self._stub.Classify(self._classify(8), timeout=_WAIT_S)
        await asyncio.sleep(self._random.random() / 200)
        call.cancel()
        await call

    def _die(self) -> None:
        """Send a whole request or a part of one, and be gone."""
        body = message(self._classify(4).SerializeToString())
        method = self._random.choice((CLASSIFY, STREAM_CLASSIFY))
        with Connection(self._target) as one:
            one.send(opening(1, method) + data(1, body[: self._random.randrange(len(body) + 1)]))
