"""Attacks on the HTTP port, each bounded in count, bytes and time; they return the sockets still held."""

import contextlib
import random
import socket
import time
from collections.abc import Callable

_FLOOD_S = 5.0
_HOST = b"Host: localhost\r\n"
_TRY = b"POST /try HTTP/1.1\r\n" + _HOST + b"Content-Type: application/octet-stream\r\n"
_INFER = b"POST /v2/models/light/infer HTTP/1.1\r\n" + _HOST
_CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
_MEBIBYTE_CHUNK = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
_ALIVE = b"GET /livez HTTP/1.1\r\n" + _HOST + b"\r\n"
Held = list[socket.socket]
Assault = Callable[[tuple[str, int]], Held]


def connected(address: tuple[str, int], data: bytes = b"") -> socket.socket:
    """Connect and send; the other end may close meanwhile."""
    one = socket.create_connection(address, 5)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(OSError):
        one.sendall(data)
    return one


def flooded(address: tuple[str, int], head: bytes, piece: bytes, count: int) -> Held:
    """Send a head, then pieces until all are sent, the time is over or the other end has enough."""
    one, end = connected(address, head), time.monotonic() + _FLOOD_S
    one.settimeout(1.0)
    with contextlib.suppress(OSError):
        for _ in range(count):
            if time.monotonic() > end:
                break
            one.sendall(piece)
    return [one]


def slow_headers(address: tuple[str, int]) -> Held:
    """Begin 500 requests and never finish the headers."""
    return [connected(address, _ALIVE[:-2] + b"X-a: b") for _ in range(500)]


def slow_bodies(address: tuple[str, int]) -> Held:
    """Promise a megabyte on 400 connections and send ten bytes of it."""
    return [
        connected(address, (_TRY, _INFER)[n % 2] + b"Content-Length: 1000000\r\n\r\n" + bytes(10)) for n in range(400)
    ]


def promised_terabytes(address: tuple[str, int]) -> Held:
    """Promise bodies of terabytes."""
    return [connected(address, _INFER + b"Content-Length: 9999999999999\r\n\r\n" + bytes(10)) for _ in range(20)]


def large_body_with_a_length(address: tuple[str, int]) -> Held:
    """Send 256 MiB to the model."""
    return flooded(address, _INFER + b"Content-Length: 268435456\r\n\r\n", bytes(1 << 20), 256)


def large_body_in_chunks(address: tuple[str, int]) -> Held:
    """Send 256 MiB to the model without saying how long it will be."""
    return flooded(address, _INFER + _CHUNKED, _MEBIBYTE_CHUNK, 256)


def large_photo_in_chunks(address: tuple[str, int]) -> Held:
    """Send 256 MiB to the status page's door."""
    return flooded(address, _TRY + _CHUNKED, _MEBIBYTE_CHUNK, 256)


def large_body_to_a_probe(address: tuple[str, int]) -> Held:
    """Send 256 MiB where no body belongs."""
    return flooded(address, b"POST /livez HTTP/1.1\r\n" + _HOST + _CHUNKED, _MEBIBYTE_CHUNK, 256)


def crumbs(address: tuple[str, int]) -> Held:
    """Send 100,000 chunks of a byte each."""
    return flooded(address, _INFER + _CHUNKED, b"1\r\nx\r\n" * 10_000, 10)


def wrong_chunks(address: tuple[str, int]) -> Held:
    """Send chunks whose lengths are wrong, huge, negative or no numbers."""
    lengths = (b"-1", b"ffffffffffffffffff", b"zz", b"", b"1;" + b"a" * 100_000)
    return [connected(address, _INFER + _CHUNKED + length + b"\r\nx\r\n") for length in lengths for _ in range(5)]


def idle_connections(address: tuple[str, int]) -> Held:
    """Ask one thing on each of 2,000 connections, and keep them."""
    return [connected(address, _ALIVE) for _ in range(2_000)]


def long_headers(address: tuple[str, int]) -> Held:
    """Send headers of 60 KB, 2,000 of them."""
    return flooded(address, _ALIVE[:-2], b"X-a: " + b"b" * 60_000 + b"\r\n", 2_000)


def many_headers(address: tuple[str, int]) -> Held:
    """Send four million short headers."""
    return flooded(address, _ALIVE[:-2], b"X-a: b\r\n" * 1_000, 4_000)


def long_addresses(address: tuple[str, int]) -> Held:
    """Ask for paths of a mebibyte."""
    return [connected(address, b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\n" + _HOST + b"\r\n") for _ in range(50)]


def pipelines(address: tuple[str, int]) -> Held:
    """Ask 10,000 things at once on one connection, without reading."""
    return flooded(address, b"", _ALIVE * 1_000, 10)


def scrapes_never_read(address: tuple[str, int]) -> Held:
    """Ask for the metrics ten times on each of 30 connections, and read nothing."""
    held = []
    for _ in range(30):
        held.append(socket.socket())
        held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        held[-1].connect(address)
        held[-1].sendall(_ALIVE.replace(b"/livez", b"/metrics") * 10)
    return held


def wrong_methods(address: tuple[str, int]) -> Held:
    """Use methods that no path has, and some that no protocol has."""
    methods = (b"TRACE", b"CONNECT", b"DELETE", b"PUT", b"PRI", b"OPTIONS", b"G\0T", b"\xff\xfe")
    return [connected(address, _ALIVE.replace(b"GET", method)) for method in methods for _ in range(10)]


def garbage(address: tuple[str, int]) -> Held:
    """Send what is no HTTP."""
    seeded = random.Random(6)
    return [connected(address, seeded.randbytes(seeded.randrange(1, 4_000))) for _ in range(200)]


def deep_json(address: tuple[str, int]) -> Held:
    """Send a million opening brackets."""
    return [connected(address, _INFER + b"Content-Length: 1000000\r\n\r\n" + b"[" * 1_000_000) for _ in range(5)]


def wrong_upgrades(address: tuple[str, int]) -> Held:
    """Ask to go on in HTTP/2 or as a web socket."""
    asked = b"Connection: Upgrade\r\nUpgrade: %s\r\nHTTP2-Settings: AAAA\r\n\r\n"
    return [connected(address, _ALIVE[:-2] + asked % (b"h2c", b"websocket")[n % 2]) for n in range(50)]


ASSAULTS: tuple[Assault, ...] = (
    slow_headers, slow_bodies, promised_terabytes, large_body_with_a_length, large_body_in_chunks,
    large_photo_in_chunks, large_body_to_a_probe, crumbs, wrong_chunks, idle_connections, long_headers, many_headers,
    long_addresses, pipelines, scrapes_never_read, wrong_methods, garbage, deep_json, wrong_upgrades,
)  # fmt: skip
