"""Load that costs little: requests serialised beforehand, so many in flight, for so many seconds."""

import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import grpc

_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # a connection for every channel
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]


@dataclass(frozen=True)
class Turn:
    """What one turn of load found."""

    seconds: float
    latencies_ms: list[float]

    @property
    def requests(self) -> int:
        """Return the number of answers."""
        return len(self.latencies_ms)


class Load(Protocol):
    """A way to ask one server."""

    def run(self, seconds: float, in_flight: int) -> Turn:
        """Ask for so long, with so many requests in flight."""
        ...


class GrpcLoad:
    """Unary calls; connections take turns."""

    def __init__(self, target: str, method: str, requests: Sequence[bytes], connections: int = 1) -> None:
        """Open the connections with the first requests."""
        self._channels = [grpc.insecure_channel(target, options=_OPTIONS) for _ in range(connections)]
        self._calls, self._requests = [channel.unary_unary(method) for channel in self._channels], requests

    def run(self, seconds: float, in_flight: int) -> Turn:
        """Ask for so long, with so many requests in flight."""
        slots, latencies, failures, sent = threading.Semaphore(in_flight), [], [], 0
        begun = time.perf_counter()

        def ended(call: grpc.Future, started: float) -> None:
            latencies.append(1000 * (time.perf_counter() - started))
            if call.code() is not grpc.StatusCode.OK:
                failures.append(call.details())
            slots.release()

        while time.perf_counter() - begun < seconds:
            slots.acquire()
            now = time.perf_counter()
            call = self._calls[sent % len(self._calls)].future(self._requests[sent % len(self._requests)])
            call.add_done_callback(lambda call, started=now: ended(call, started))
            sent += 1
        for _ in range(in_flight):
            slots.acquire()
        if failures:
            sys.exit(f"{len(failures)} of {sent} requests failed, the first with: {failures[0]}")
        return Turn(time.perf_counter() - begun, latencies)


class StreamLoad:
    """One stream for each connection, each with its part of the requests in flight."""

    def __init__(self, target: str, method: str, requests: Sequence[bytes], connections: int = 1) -> None:
        """Open the connections with the first requests."""
        self._channels = [grpc.insecure_channel(target, options=_OPTIONS) for _ in range(connections)]
        self._calls, self._requests = [channel.stream_stream(method) for channel in self._channels], requests

    def run(self, seconds: float, in_flight: int) -> Turn:
        """Ask for so long, with so many requests in flight."""
        begun, latencies = time.perf_counter(), []

        def ask(number: int) -> None:
            slots, started = threading.Semaphore(max(1, in_flight // len(self._calls))), []

            def requests() -> Iterator[bytes]:
                while time.perf_counter() - begun < seconds:
                    slots.acquire()
                    started.append(time.perf_counter())
                    yield self._requests[len(started) % len(self._requests)]

            for place, _ in enumerate(self._calls[number](requests())):
                latencies.append(1000 * (time.perf_counter() - started[place]))
                slots.release()

        with ThreadPoolExecutor(len(self._calls)) as threads:
            list(threads.map(ask, range(len(self._calls))))
        return Turn(time.perf_counter() - begun, latencies)


class HttpLoad:
    """HTTP POSTs over connections that are kept, one for each request in flight."""

    def __init__(self, target: str, path: str, bodies: Sequence[bytes]) -> None:
        """Serialise the requests."""
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        head = f"POST {path} HTTP/1.1\r\nHost: {target}\r\nContent-Length: "
        self._requests = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]

    def run(self, seconds: float, in_flight: int) -> Turn:
        """Ask for so long, with so many requests in flight."""
        begun, latencies = time.perf_counter(), []

        def ask(number: int) -> None:
            with socket.create_connection((self._host, self._port)) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                turn = number
                while (now := time.perf_counter()) - begun < seconds:
                    connection.sendall(self._requests[turn % len(self._requests)])
                    _read_answer(connection)
                    latencies.append(1000 * (time.perf_counter() - now))
                    turn += in_flight

        with ThreadPoolExecutor(in_flight) as threads:
            list(threads.map(ask, range(in_flight)))
        return Turn(time.perf_counter() - begun, latencies)


def _read_answer(connection: socket.socket) -> bytes:
    """Read one answer with a content-length; raise OSError unless it is a 200."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += _piece(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise OSError(f"a request failed: {answer[:300]!r}")
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(fields[b"content-length"]):
        body += _piece(connection)
    return body


def _piece(connection: socket.socket) -> bytes:
    piece = connection.recv(65536)
    if not piece:
        raise OSError("the server closed a connection before its answer")
    return piece
