"""Just enough HTTP/2 to misbehave: frames by hand, headers as HPACK literals, a connection that never insists."""

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple, Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
CANCEL = struct.pack(">I", 8)
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4
CLASSIFY = "/penult.v1.PenultService/Classify"
STREAM_CLASSIFY = "/penult.v1.PenultService/StreamClassify"
WATCH = "/grpc.health.v1.Health/Watch"
_PATIENCE_S = 5.0


class Frame(NamedTuple):
    """What came over the wire."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Write a frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(values: dict[int, int] | None = None) -> bytes:
    """Write a SETTINGS frame."""
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", *pair) for pair in (values or {}).items()))


def window_update(stream: int, more: int) -> bytes:
    """Write a WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, stream=stream, payload=struct.pack(">I", more))


def integer(value: int, prefix_bits: int, first: int = 0) -> bytes:
    """Write an HPACK integer behind the bits of `first`."""
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes([first | value])
    rest, out = value - most, [first | most]
    while rest >= 128:
        out.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*out, rest])


def literal(name: str, value: bytes, is_kept: bool = False) -> bytes:
    """Write a header as an HPACK literal; `is_kept` puts it into the receiver's dynamic table."""
    parts = (name.encode(), value)
    return bytes([0x40 if is_kept else 0]) + b"".join(integer(len(part), 7) + part for part in parts)


def request_block(path: str, *more: tuple[str, bytes]) -> bytes:
    """Write the headers of a gRPC request."""
    usual = [(":method", b"POST"), (":scheme", b"http"), (":path", path.encode()), (":authority", b"localhost"),
             ("te", b"trailers"), ("content-type", b"application/grpc")]  # fmt: skip
    return b"".join(literal(name, value) for name, value in [*usual, *more])


def opening(stream: int, path: str, *more: tuple[str, bytes], flags: int = END_HEADERS) -> bytes:
    """Write the HEADERS frame that opens a stream."""
    return frame(HEADERS, flags, stream, request_block(path, *more))


def message(data: bytes, promised: int | None = None, is_compressed: bool = False) -> bytes:
    """Write a gRPC message; `promised` is the length it claims to have."""
    return struct.pack(">BI", is_compressed, len(data) if promised is None else promised) + data


def data(stream: int, payload: bytes, flags: int = 0, most: int = 16_384) -> bytes:
    """Write a payload as DATA frames; `flags` go on the last."""
    pieces = [payload[at : at + most] for at in range(0, len(payload), most)] or [b""]
    last = len(pieces) - 1
    return b"".join(frame(DATA, flags if n == last else 0, stream, piece) for n, piece in enumerate(pieces))


class Connection:
    """A TCP connection whose other end may leave at any time: sending says whether it worked, reading never waits long."""

    def __init__(self, target: str, greeting: bytes = PREFACE + settings()) -> None:
        """Connect, and send `greeting`."""
        host, port = target.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), _PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        self.is_open = True
        if greeting:
            self.send(greeting)

    def __enter__(self) -> Self:
        """Nothing to do."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def send(self, data: bytes) -> bool:
        """Send all of it; False where the other end is gone or reads no more."""
        try:
            self.socket.sendall(data)
        except OSError:
            self.is_open = False
        return self.is_open

    def frames(self, seconds: float = 0.0) -> Iterator[Frame]:
        """Yield the frames that come within a time; ends early where the other end closes."""
        end = time.monotonic() + seconds
        while True:
            self.socket.settimeout(max(0.001, end - time.monotonic()))
            with contextlib.suppress(TimeoutError):
                self._receive()
            yield from self._whole()
            if not self.is_open or time.monotonic() >= end:
                self.socket.settimeout(_PATIENCE_S)
                return

    def is_closed_within(self, seconds: float) -> bool:
        """Read and drop all that comes; return whether the other end closed in time."""
        for _ in self.frames(seconds):
            pass
        return not self.is_open

    def close(self) -> None:
        """Close at once."""
        self.is_open = False
        self.socket.close()

    def _receive(self) -> None:
        try:
            part = self.socket.recv(1 << 18)
        except TimeoutError:
            raise
        except OSError:
            part = b""
        self.is_open = self.is_open and bool(part)
        self._rest += part

    def _whole(self) -> Iterator[Frame]:
        at = 0
        while len(self._rest) - at >= 9:
            length = int.from_bytes(self._rest[at : at + 3])
            if len(self._rest) - at < 9 + length:
                break
            kind, flags, stream = struct.unpack_from(">BBI", self._rest, at + 3)
            yield Frame(kind, flags, stream & 0x7FFFFFFF, self._rest[at + 9 : at + 9 + length])
            at += 9 + length
        self._rest = self._rest[at:]
