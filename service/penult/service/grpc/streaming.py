"""What the servicers share: streams answered in order, and deadlines as the pipeline reckons them."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc

from penult.service.grpc.rpc import Rpc

# What servicers see of a call; penult.service.grpc.rpc.Rpc has as much of it as they use.
Context = grpc.aio.ServicerContext[Any, Any]
Request = TypeVar("Request")
Response = TypeVar("Response")

# Requests of one stream that are worked on at a time: enough to keep the model busy while answers travel.
_STREAM_WINDOW = 4


async def in_order(
    requests: AsyncIterator[Request], answer: Callable[[Request], Awaitable[Response]]
) -> AsyncIterator[Response]:
    """Answer a stream's requests in order, a few at a time; an unread answer holds further reading back."""
    pending: asyncio.Queue[asyncio.Future[Response] | None] = asyncio.Queue(_STREAM_WINDOW)

    async def read() -> None:
        try:
            async for request in requests:
                task = asyncio.ensure_future(answer(request))
                try:
                    await pending.put(task)
                except asyncio.CancelledError:
                    task.cancel()
                    raise
        finally:
            await pending.put(None)

    reader = asyncio.create_task(read())
    try:
        while (task := await pending.get()) is not None:
            yield await task
        await reader  # raises what reading raised
    finally:
        reader.cancel()
        while not pending.empty():
            if left := pending.get_nowait():
                left.cancel()


def expires(context: Context | Rpc) -> float:
    """Return when the client stops waiting, by time.perf_counter()."""
    remaining = context.time_remaining()
    return math.inf if remaining is None else time.perf_counter() + remaining
