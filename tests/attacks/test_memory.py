"""What a photo leaves behind in a server, and what one hears for whose pixels there is no memory."""

import resource

import grpc
import numpy as np
import pytest
from PIL import Image
from tests.attacks.case import encode as encoded
from tests.attacks.corpus import corpus
from tests.attacks.servers import (  # noqa: F401 - fixtures
    MEMORY_BYTES,
    channel,
    stub,
    victim,
)

from penult.bundle.preprocess import decode
from penult.v1 import penult_pb2 as pb

_WAIT_S = 240


def ask(stub, name: str) -> pb.ClassifyResult:  # noqa: F811
    images = [pb.Image(encoded=corpus()[name].data)]
    return stub.Classify(pb.ClassifyRequest(images=images), timeout=_WAIT_S).results[0]


@pytest.mark.parametrize("name", ["webp-claims-49-megapixels-lossless", "webp-claims-49-megapixels-lossy"])
def test_a_refused_photo_leaves_nothing_behind(victim, stub, name):  # noqa: F811
    """Ten small files that claim 49 million pixels, each damaged where its decoder is half through, cost no memory later."""
    ask(stub, "webp")
    before = victim.status("VmRSS")
    for _ in range(10):
        assert ask(stub, name).error.reason == "IMAGE_CORRUPT"
    assert victim.status("VmRSS") < before + 64


def test_a_photo_for_which_there_is_no_memory(victim, stub):  # noqa: F811
    """Where its pixels cannot be allocated the request is told to come again, and small photos are answered on."""
    ask(stub, "png")
    limit = (victim.status("VmData") + 100) << 20
    try:
        resource.prlimit(victim.pid, resource.RLIMIT_DATA, (limit, MEMORY_BYTES))
        with pytest.raises(grpc.RpcError) as caught:
            ask(stub, "png-large-rgb")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(caught.value.trailing_metadata())["penult-reason"] == "MEMORY_FULL"
        assert ask(stub, "png").classification.label
    finally:
        resource.prlimit(victim.pid, resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    assert ask(stub, "png-large-rgb").classification.label


def test_large_photos_are_converted_as_small_ones_are():
    """Transparency and 16 bits of more than a million pixels, converted piece by piece, are as if converted at once."""
    rng = np.random.default_rng(1)
    clear = Image.fromarray(rng.integers(0, 256, (1000, 1200, 4), dtype=np.uint8))
    white = Image.new("RGBA", clear.size, "white")
    whole = np.asarray(Image.alpha_composite(white, clear).convert("RGB"))
    assert np.array_equal(np.asarray(decode(encoded(clear, "PNG"))), whole)
    deep = rng.integers(0, 65536, (1000, 1200), dtype=np.uint16)
    found = np.asarray(decode(encoded(Image.fromarray(deep), "PNG")))
    assert np.array_equal(found, np.repeat(((deep.astype(np.uint32) + 128) // 257)[..., None], 3, axis=2))
