"""gRPC passes over options that it does not know without a word: those that are set here are ones that it has."""

import asyncio
import contextlib
import socket
import struct
import time
from pathlib import Path

import pytest
from grpc._cython import cygrpc

from penult.client import channel_options
from penult.service.config import ServeConfig
from penult.service.grpc.transport import GrpcServer
from penult.service.process import server

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7


@pytest.fixture(scope="module")
def library() -> bytes:
    """gRPC's core, as it is installed."""
    return Path(cygrpc.__file__).read_bytes()


@pytest.mark.parametrize(
    "options",
    [server._options(ServeConfig(), True), channel_options.options(4, True), [("grpc.ssl_target_name_override", "")]],
    ids=["server", "client", "tls"],
)
def test_every_option_is_one_of_grpcs(library, options):
    """The name of each option stands in gRPC's core; one that does not exist would show."""
    assert b"grpc.http2.min_recv_ping_interval_without_data_ms" not in library
    assert [name for name, _ in options if name.encode() not in library] == []


def _frame(kind: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, 0]) + bytes(4) + payload


def _kinds_after_pings(port: int, pings: int, every_s: float) -> list[int]:
    """Ping a server now and then over an idle connection; return the kinds of frames that it sent."""
    data = b""
    with socket.create_connection(("127.0.0.1", port), 20) as connection, contextlib.suppress(OSError):
        connection.sendall(PREFACE + _frame(SETTINGS))
        for _ in range(pings):  # once it has hung up, sending fails
            time.sleep(every_s)
            connection.sendall(_frame(PING, bytes(8)))
            data += connection.recv(1 << 16)
        time.sleep(every_s)
        connection.shutdown(socket.SHUT_WR)
        while more := connection.recv(1 << 16):
            data += more
    kinds = []
    while data:
        kinds.append(data[3])
        data = data[9 + int.from_bytes(data[:3], "big") :]
    return kinds


@pytest.mark.parametrize(("every_s", "allowed_ms", "is_borne"), [(0.3, 100, True), (0.02, 60_000, False)])
def test_pings_of_idle_clients_are_borne_as_often_as_promised(monkeypatch, every_s, allowed_ms, is_borne):
    """A client that pings no more often than is allowed is never sent away; one that pings far more often is.

    Other intervals than 10 s are allowed here, so that the test is short and no busy machine changes its outcome.
    """
    monkeypatch.setattr(server, "_CLIENT_PING_MS", allowed_ms)

    async def act() -> list[int]:
        served = GrpcServer(options=server._options(ServeConfig(), False))
        port = served.add_insecure_port("127.0.0.1:0")
        await served.start()
        try:
            return await asyncio.to_thread(_kinds_after_pings, port, 6, every_s)
        finally:
            await served.stop(None)

    kinds = asyncio.run(act())
    assert PING in kinds
    assert (GOAWAY not in kinds) is is_borne
