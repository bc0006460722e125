"""WebPs of the corpus: lossy, lossless, clear, animated, and with lies in every header."""

import io
import struct
from collections.abc import Iterable
from functools import cache, partial

from PIL import Image
from tests.attacks.case import HEIGHT, WIDTH, Case, cuts, encode, exif, picture, stored


@cache
def webp(**options: object) -> bytes:
    """The picture as a WebP."""
    return encode(picture(), "WEBP", **({"quality": 95} | options))


def riff(*chunks: bytes, size: int | None = None) -> bytes:
    """A RIFF container; `size` is what it claims to hold."""
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def part(kind: bytes, body: bytes) -> bytes:
    """One chunk, padded to an even length."""
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def extended(width: int, height: int, flags: int = 0) -> bytes:
    """A VP8X chunk."""
    return part(
        b"VP8X", bytes((flags, 0, 0, 0)) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    )


def animated(frames: int = 3) -> bytes:
    """The picture, then others."""
    others = [picture().rotate(90 * n) for n in range(1, frames)]
    buffer = io.BytesIO()
    picture().save(buffer, "WEBP", save_all=True, append_images=others, quality=95, duration=100)
    return buffer.getvalue()


def _kinds() -> Iterable[Case]:
    clear = picture().convert("RGBA")
    clear.putalpha(255)
    yield Case("webp-lossless", webp(lossless=True), like="png")
    yield Case("webp-quality-1", webp(quality=1), like="png", cosine=0.8)
    yield Case("webp-alpha", encode(clear, "WEBP", quality=95), like="webp")
    half = picture().convert("RGBA")
    half.putalpha(128)
    yield Case("webp-half-clear", encode(half, "WEBP", quality=95), like="webp", cosine=0.97)
    yield Case("webp-half-clear-lossless", encode(half, "WEBP", lossless=True), like="webp", cosine=0.97)
    nothing = Image.new("RGBA", (WIDTH, HEIGHT))
    yield Case("webp-clear", encode(nothing, "WEBP", lossless=True), like="white")
    yield Case("webp-animated", animated(), like="webp", cosine=0.97)
    yield Case("webp-animated-30", animated(30), like="webp", cosine=0.97)
    for orientation in (1, 6):
        data = encode(stored(orientation), "WEBP", quality=95, exif=b"Exif\0\0" + exif(orientation))
        yield Case(f"webp-exif-{orientation}", data, like="webp", cosine=0.98)
    for width, height in ((1, 1), (1, 5000), (5000, 1), (16_383, 1)):
        yield Case(f"webp-{width}x{height}", encode(Image.new("RGB", (width, height)), "WEBP"))
    for name, mode, lossless in (("lossy", "RGB", False), ("clear", "RGBA", True)):
        yield Case(f"webp-large-{name}", partial(_large, mode, lossless), is_slow=True)


def _large(mode: str, lossless: bool) -> bytes:
    image = Image.new(mode, (7000, 7000), (90,) * len(mode))
    return encode(image, "WEBP", lossless=lossless, method=0, quality=0)


def _containers() -> Iterable[Case]:
    data = webp()
    stream, lossless = data[12:], webp(lossless=True)[12:]
    odd = part(b"ODD ", b"odd")
    moving = animated()
    second = moving.index(b"ANMF", moving.index(b"ANMF") + 1)
    for name, bad, reason in (
        ("size-too-large", riff(stream, size=len(data) + 1), "IMAGE_TRUNCATED"),
        ("size-largest", riff(stream, size=2**32 - 1), "IMAGE_TRUNCATED"),
        ("size-too-small", riff(stream, size=len(data) // 2), "IMAGE_CORRUPT"),
        ("size-0", riff(stream, size=0), "IMAGE_CORRUPT"),
        ("size-odd", riff(stream, b"\0", size=len(data) - 7), ""),
        ("no-chunks", riff(), "IMAGE_CORRUPT"),
        ("extended", riff(extended(WIDTH, HEIGHT), stream), ""),
        ("extended-alone", riff(extended(WIDTH, HEIGHT)), "IMAGE_CORRUPT"),
        ("extended-other-size", riff(extended(WIDTH + 1, HEIGHT), stream), "IMAGE_CORRUPT"),
        ("extended-short", riff(part(b"VP8X", bytes(4)), stream), "IMAGE_CORRUPT"),
        ("bomb-extended", riff(extended(16_000, 16_000), stream), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-canvas", riff(extended(1 << 24, 1 << 7), stream), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-largest", riff(extended(1 << 24, 1 << 24), stream), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-animated", _canvas(moving, 16_000, 16_000), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-lossless", _lossless(16_384, 16_384), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-lossy", _lossy(16_383, 16_383), "IMAGE_TOO_MANY_PIXELS"),
        ("claims-49-megapixels-lossless", _lossless(7000, 7000), "IMAGE_CORRUPT"),
        ("claims-49-megapixels-lossy", _lossy(7000, 7000), "IMAGE_CORRUPT"),
        ("no-width", _lossy(0, HEIGHT), "IMAGE_CORRUPT"),
        ("lossless-version-7", riff(lossless[:12] + bytes((lossless[12] | 0xE0,)) + lossless[13:]), "IMAGE_CORRUPT"),
        ("unknown-chunk", riff(extended(WIDTH, HEIGHT), odd, stream, odd), ""),
        ("unknown-chunk-first", riff(odd, stream), ""),
        ("exif-noise", riff(extended(WIDTH, HEIGHT, 8), stream, part(b"EXIF", b"noise" * 9)), ""),
        ("exif-missing", riff(extended(WIDTH, HEIGHT, 8), stream), ""),
        ("icc-noise", riff(extended(WIDTH, HEIGHT, 32), part(b"ICCP", b"noise" * 9), stream), ""),
        ("xmp-noise", riff(extended(WIDTH, HEIGHT, 4), stream, part(b"XMP ", b"<x" * 99)), ""),
        ("trailing", data + b"more" * 99, ""),
        ("two-streams", riff(extended(WIDTH, HEIGHT), stream, stream), "IMAGE_CORRUPT"),
        ("stream-noise", riff(stream[:30] + b"\xa5\x5a" * ((len(stream) - 30) // 2)), ""),
        ("lossless-noise", riff(lossless[:30] + b"\xa5\x5a" * ((len(lossless) - 30) // 2)), "IMAGE_CORRUPT"),
        ("animated-one-frame", riff(moving[12:second]), ""),
        ("animated-no-frames", riff(moving[12 : moving.index(b"ANMF")]), "IMAGE_CORRUPT"),
        ("wave", b"RIFF" + data[4:8] + b"WAVE" + data[12:], "IMAGE_UNKNOWN_FORMAT"),
    ):
        yield Case(f"webp-{name}", bad, reason)


def _canvas(data: bytes, width: int, height: int) -> bytes:
    at = data.index(b"VP8X") + 12
    return data[:at] + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little") + data[at + 6 :]


def _lossless(width: int, height: int) -> bytes:
    data = webp(lossless=True)
    at = data.index(b"VP8L") + 9
    flags = int.from_bytes(data[at : at + 4], "little") >> 28 << 28
    return data[:at] + (flags | (height - 1) << 14 | width - 1).to_bytes(4, "little") + data[at + 4 :]


def _lossy(width: int, height: int) -> bytes:
    data = webp()
    at = data.index(b"VP8 ") + 14
    return data[:at] + struct.pack("<HH", width, height) + data[at + 4 :]


def all_webps() -> Iterable[Case]:
    """Every WebP of the corpus."""
    yield Case("webp", webp(), like="png", cosine=0.98)
    yield from _kinds()
    yield from _containers()
    early = {0.005: "IMAGE_UNKNOWN_FORMAT"}
    early_lossless = {0.02: "IMAGE_UNKNOWN_FORMAT"}
    yield from cuts("webp", webp(), (0.005, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999), early)
    yield from cuts("webp-lossless", webp(lossless=True), (0.02, 0.1, 0.5, 0.9, 0.999), early_lossless)
