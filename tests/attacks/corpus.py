"""Bad and odd images with the answers that they must get, made by code and the same every time."""

import zlib
from collections.abc import Iterable
from functools import cache

import numpy as np
from tests.attacks.bitmaps import all_bitmaps
from tests.attacks.case import Case, encode, picture
from tests.attacks.heifs import all_heifs
from tests.attacks.jpegs import all_jpegs, jpeg, segment, with_front
from tests.attacks.pngs import SIGNATURE, all_pngs
from tests.attacks.tiffs import all_tiffs
from tests.attacks.webps import all_webps, webp

from penult.bundle.guards import LEARNING_LIMITS
from penult.bundle.preprocess import Preprocess, crop_encoded

# Also what the tests' model looks at: small, so that a crop says in few numbers what a picture is.
SPEC = Preprocess(resize=32, crop=32)


def _no_images() -> Iterable[Case]:
    """What is of no format that is read."""
    yield Case("empty", b"", "IMAGE_EMPTY")
    image = picture()
    for kind in ("ICO", "PPM", "TGA", "PCX", "SGI", "DDS", "JPEG2000", "EPS"):
        yield Case(f"other-{kind.lower()}", encode(image, kind), "IMAGE_UNKNOWN_FORMAT")
    for name, data in (
        ("one-byte", b"\xff"),
        ("zero-byte", b"\0"),
        ("text", b"no photo, but a line of text"),
        ("psd", b"8BPS\0\1" + bytes(6) + b"\0\3" + b"\0\0\0\x40" * 2 + bytes(400)),
        ("film", b"\0\0\0\x18ftypmp42" + bytes(400)),
        ("svg", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"),
        ("html", b"<!doctype html><img src=x>"),
        ("pdf", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n"),
        ("zip", b"PK\3\4" + bytes(99)),
        ("gzip", b"\x1f\x8b\x08" + bytes(99)),
        ("zlib", zlib.compress(bytes(9999))),
        ("pickle", b"cposix\nsystem\n(S'true'\ntR."),
        ("zeros", bytes(1 << 20)),
        ("noise", np.random.default_rng(0).bytes(1 << 16)),
        ("png-without-its-first-byte", encode(image, "PNG")[1:]),
        ("jpeg-behind-a-zero", b"\0" + jpeg()),
        ("base64", b"/9j/4AAQSkZJRgABAQ=="),
    ):
        yield Case(f"other-{name}", data, "IMAGE_UNKNOWN_FORMAT")
    yield Case("signature-jpeg", b"\xff\xd8\xff", "IMAGE_CORRUPT")
    yield Case("signature-png", SIGNATURE, "IMAGE_CORRUPT")
    yield Case("signature-webp", b"RIFF\4\0\0\0WEBP", "IMAGE_CORRUPT")
    yield Case("signature-heic", b"\0\0\0\x18ftypheic" + bytes(400), "IMAGE_CORRUPT")


def _polyglots() -> Iterable[Case]:
    """Files that are two things at once: they are what their first bytes say."""
    png = encode(picture(), "PNG")
    archive = b"PK\3\4" + bytes(26) + b"PK\5\6" + bytes(18)
    for name, data, like in (
        ("jpeg-zip", jpeg() + archive, "jpeg"),
        ("jpeg-png", jpeg() + png, "jpeg"),
        (
            "jpeg-script",
            with_front(jpeg(), segment(0xFE, b"<?php system('true'); ?><script>alert(1)</script>")),
            "jpeg",
        ),
        ("jpeg-pdf", with_front(jpeg(), segment(0xFE, b"%PDF-1.7\n1 0 obj")), "jpeg"),
        ("png-jpeg", png + jpeg(), "png"),
        ("webp-jpeg", webp() + jpeg(), "webp"),
    ):
        yield Case(f"polyglot-{name}", data, like=like)
    yield Case("polyglot-gif-jpeg", b"GIF89a" + jpeg(), "IMAGE_CORRUPT")
    yield Case("polyglot-pdf-jpeg", b"%PDF-1.7\n" + jpeg(), "IMAGE_UNKNOWN_FORMAT")


@cache
def corpus() -> dict[str, Case]:
    """Every case by its name."""
    found: dict[str, Case] = {}
    for make in (_no_images, all_pngs, all_jpegs, all_webps, all_heifs, all_tiffs, all_bitmaps, _polyglots):
        for case in make():
            assert case.name not in found, case.name
            found[case.name] = case
    return found


def representatives() -> list[Case]:
    """Some forty cases: of each kind of file (the first word of a name) and each reason one, and the slow ones."""
    chosen: dict[tuple[str, str], Case] = {}
    for case in corpus().values():
        chosen.setdefault((case.name.partition("-")[0], case.reason), case)
    return list(chosen.values()) + [case for case in corpus().values() if case.is_slow and case not in chosen.values()]


def likeness(one: bytes, other: bytes, spec: Preprocess = SPEC) -> float:
    """The cosine of two photos' crops, each taken relative to its mean; 1 where neither differs from its mean."""
    a, b = (crop_encoded(data, spec, LEARNING_LIMITS).astype(float).ravel() for data in (one, other))
    a, b = a - a.mean(), b - b.mean()
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else float(np.allclose(a, b))
