"""The server on gRPC's core, against gRPC's own clients: every kind of call, and how calls end. No protobuf here."""

import asyncio
import threading
from contextlib import asynccontextmanager

import grpc
import pytest
from tests.attacks.http2 import END_STREAM, HEADERS, Connection, data, message, opening

from penult.service.grpc.rpc import Aborted
from penult.service.grpc.transport import GrpcServer
from penult.service.suspension import is_on_event_loop, on_event_loop, suspended

ECHO = "/s/Echo"
LIMIT_BYTES = 1 << 20


class Methods:
    """A router of one service, whose methods a test gives; those in `direct` run without the event loop."""

    def __init__(self, direct=(), refuse=None, **methods) -> None:
        """Serve the unary methods."""
        self._direct, self._refuse = {f"/s/{name}" for name in direct}, refuse
        self.handlers = {name: grpc.unary_unary_rpc_method_handler(act) for name, act in methods.items()}

    def find(self, rpc, handlers):
        """Refuse, or find a handler."""
        if self._refuse:
            rpc.set_trailing_metadata((("why", "full"),))
            raise Aborted(grpc.StatusCode.RESOURCE_EXHAUSTED, self._refuse)
        return handlers.get(rpc.path), rpc.path in self._direct


@asynccontextmanager
async def serving(methods: Methods, **more):
    """Serve methods; yield a channel and the port."""
    server = GrpcServer(methods, [("grpc.max_receive_message_length", LIMIT_BYTES)])
    server.add_registered_method_handlers("s", methods.handlers | more)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel, port
    finally:
        await server.stop(None)


async def failed(call) -> grpc.aio.AioRpcError:
    """Return what a call fails with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def until(is_true) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(20):
        while not is_true():
            await asyncio.sleep(0.005)


def later(resume, result=None, error=None) -> None:
    """Resume on another thread."""
    threading.Thread(target=resume, args=(result, error)).start()


@pytest.mark.parametrize("direct", [["Echo"], []], ids=["direct", "on-the-loop"])
def test_a_unary_call_has_its_headers_and_sends_trailers(direct):
    """The servicer sees metadata, peer and deadline; the client gets the answer and the trailing metadata."""
    seen = {}

    async def echo(request, rpc):
        seen.update(rpc.invocation_metadata(), peer=rpc.peer(), left=rpc.time_remaining(), loop=is_on_event_loop())
        rpc.set_trailing_metadata((("id", "7"),))
        return request[::-1]

    async def scenario():
        async with serving(Methods(direct, Echo=echo)) as (channel, _):
            call = channel.unary_unary(ECHO)(b"abc", metadata=(("a-key", "of-mine"),), timeout=60)
            assert await call == b"cba"
            assert dict(await call.trailing_metadata())["id"] == "7"
            assert 0 < seen["left"] < 66  # gRPC rounds what it sends up
            await channel.unary_unary(ECHO)(b"")
            assert seen["left"] is None

    asyncio.run(scenario())
    assert (seen["a-key"], seen["loop"]) == ("of-mine", not direct)
    assert seen["peer"].startswith("ipv4:127.0.0.1:")


def test_a_direct_call_goes_on_where_it_is_resumed():
    """A direct coroutine stops without a thread, continues on the thread that resumes it, and may move to the loop."""
    threads = []

    async def echo(request, rpc):
        threads.append(threading.current_thread())
        found = await suspended(lambda resume: later(resume, b"found"))
        threads.append(threading.current_thread())
        await on_event_loop()
        threads.append(threading.current_thread())
        await asyncio.sleep(0)
        return found + request

    async def scenario():
        async with serving(Methods(["Echo"], Echo=echo)) as (channel, _):
            assert await channel.unary_unary(ECHO)(b"!") == b"found!"

    asyncio.run(scenario())
    assert threads[0].name == "grpc"
    assert threads[1] not in (threads[0], threads[2])
    assert threads[2] is threading.main_thread()


@pytest.mark.parametrize("leaves", ["cancels", "deadline"])
def test_a_parked_call_ends_when_its_client_leaves(leaves):
    """CancelledError is raised where a direct coroutine waits; a result that comes too late is dropped."""
    resumes, ended = [], []

    async def echo(request, rpc):
        try:
            await suspended(resumes.append)
        except asyncio.CancelledError:
            ended.append(rpc.time_remaining())
            raise

    async def scenario():
        async with serving(Methods(["Echo"], Echo=echo)) as (channel, _):
            call = channel.unary_unary(ECHO)(b"", timeout=0.3 if leaves == "deadline" else 60)
            await until(lambda: resumes)
            if leaves == "cancels":
                call.cancel()
            with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
                await call
            await until(lambda: ended)
            resumes[0](b"too late", None)

    asyncio.run(scenario())
    assert len(ended) == 1
    assert (ended[0] < 1) is (leaves == "deadline")


def test_an_error_resumes_a_call_and_a_bug_says_nothing():
    """An exception given to the resume is raised in the coroutine; what escapes is UNKNOWN without its text."""

    async def echo(request, rpc):
        if request == b"abort":
            await rpc.abort(grpc.StatusCode.NOT_FOUND, "not here", (("why", "gone"),))
        await suspended(lambda resume: later(resume, None, KeyError("secret")))

    async def scenario():
        async with serving(Methods(["Echo"], Echo=echo)) as (channel, _):
            aborted = await failed(channel.unary_unary(ECHO)(b"abort"))
            bug = await failed(channel.unary_unary(ECHO)(b""))
            unknown = await failed(channel.unary_unary("/s/Nothing")(b""))
        return aborted, bug, unknown

    aborted, bug, unknown = asyncio.run(scenario())
    assert (aborted.code(), aborted.details()) == (grpc.StatusCode.NOT_FOUND, "not here")
    assert dict(aborted.trailing_metadata())["why"] == "gone"
    assert bug.code() is grpc.StatusCode.UNKNOWN
    assert "secret" not in bug.details()
    assert unknown.code() is grpc.StatusCode.UNIMPLEMENTED


def test_streams_in_both_directions():
    """Requests come as an iterator, answers as a generator or by write(); a client that leaves ends the generator."""
    ended = threading.Event()

    async def both(requests, rpc):
        try:
            async for request in requests:
                yield request * 2
        finally:
            ended.set()

    async def watch(request, rpc):
        for number in range(3):
            await rpc.write(request + bytes([number]))

    more = {
        "Both": grpc.stream_stream_rpc_method_handler(both),
        "Watch": grpc.unary_stream_rpc_method_handler(watch),
    }

    async def scenario():
        async with serving(Methods(), **more) as (channel, _):
            found = [part async for part in channel.stream_stream("/s/Both")(iter([b"a", b"b"]))]
            assert found == [b"aa", b"bb"]
            assert [part async for part in channel.unary_stream("/s/Watch")(b"n")] == [b"n\0", b"n\1", b"n\2"]
            ended.clear()
            call = channel.stream_stream("/s/Both")()
            await call.write(b"c")
            assert await call.read() == b"cc"
            call.cancel()
            await until(ended.is_set)

    asyncio.run(scenario())


def test_no_message_and_too_much_of_one():
    """A unary call without a message is UNIMPLEMENTED, one beyond the limit RESOURCE_EXHAUSTED; neither is answered."""
    calls = []

    async def echo(request, rpc):
        calls.append(request)
        return b""

    async def scenario():
        async with serving(Methods(["Echo"], Echo=echo)) as (channel, _):
            none = await failed(channel.stream_unary(ECHO)(iter(())))
            large = await failed(channel.unary_unary(ECHO)(bytes(LIMIT_BYTES + 1)))
            await channel.unary_unary(ECHO)(b"next")
        return none.code(), large.code()

    assert asyncio.run(scenario()) == (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert calls == [b"next"]


def test_a_refused_call_is_answered_before_its_message():
    """A router that refuses needs the headers only: the status comes while the client still holds its body back."""

    async def scenario():
        async with serving(Methods(refuse="no place")) as (channel, port):
            error = await failed(channel.unary_unary(ECHO)(bytes(LIMIT_BYTES)))
            assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "no place")
            assert dict(error.trailing_metadata())["why"] == "full"
            return await asyncio.to_thread(_kinds_before_a_body, port)

    kinds = asyncio.run(scenario())
    assert (HEADERS, True) in kinds


def _kinds_before_a_body(port: int) -> list[tuple[int, bool]]:
    with Connection(f"127.0.0.1:{port}") as one:
        one.send(opening(1, ECHO))
        found = []
        for frame in one.frames(5):
            found.append((frame.kind, bool(frame.flags & END_STREAM)))
            if found[-1] == (HEADERS, True):
                break
        return found


def test_slow_bodies_hold_no_thread():
    """Fifty calls whose bodies never end cost no thread, and others are answered beside them."""

    async def echo(request, rpc):
        return request

    def hold(port: int) -> list[Connection]:
        held = [Connection(f"127.0.0.1:{port}") for _ in range(50)]
        for one in held:
            one.send(opening(1, ECHO) + data(1, message(b"part", promised=1000)))
        return held

    async def scenario():
        async with serving(Methods(["Echo"], Echo=echo)) as (channel, port):
            await channel.unary_unary(ECHO)(b"first")
            before = threading.active_count()
            held = await asyncio.to_thread(hold, port)
            for number in range(20):
                assert await channel.unary_unary(ECHO)(bytes([number])) == bytes([number])
            more = threading.active_count() - before
            for one in held:
                one.close()
            return more

    assert asyncio.run(scenario()) <= 1  # asyncio.to_thread's own


def test_stop_ends_what_is_under_way_and_frees_the_port():
    """stop() cancels calls that wait, direct and on the loop; the port can be bound again."""
    parked = []

    async def direct(request, rpc):
        await suspended(parked.append)

    async def loop(request, rpc):
        parked.append(None)
        await asyncio.Event().wait()

    async def scenario():
        methods = Methods(["Direct"], Direct=direct, Loop=loop)
        server = GrpcServer(methods)
        server.add_registered_method_handlers("s", methods.handlers)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            calls = [channel.unary_unary(f"/s/{name}")(b"") for name in ("Direct", "Loop")]
            waiting = [asyncio.ensure_future(failed(call)) for call in calls]
            await until(lambda: len(parked) == 2)
            await server.stop(None)
            codes = {error.code() for error in await asyncio.gather(*waiting)}
        again = GrpcServer()
        assert again.add_insecure_port(f"127.0.0.1:{port}") == port
        return codes

    assert asyncio.run(scenario()) <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}


def test_an_address_that_cannot_be_bound_is_an_error():
    """A port without an address of this machine cannot be bound."""
    with pytest.raises(RuntimeError, match="cannot bind"):
        GrpcServer().add_insecure_port("203.0.113.1:1")
