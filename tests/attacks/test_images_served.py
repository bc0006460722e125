"""Bad and odd images against a real server of limited memory, over every RPC, in random order.

Some forty of the corpus; PENULT_FULL=1 sends all of it in ten rounds. What the decoder says of each: bundle/test_corpus.py.
"""

import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import grpc
import httpx
import numpy as np
import pytest
from tests.attacks.case import Case
from tests.attacks.corpus import corpus, representatives
from tests.attacks.servers import (  # noqa: F401 - fixtures
    MEMORY_BYTES,
    channel,
    oip_stub,
    stub,
    victim,
)

from penult.bundle.guards import LEARNING_LIMITS
from penult.bundle.preprocess import Preprocess, crop_encoded
from penult.oip import grpc_service_pb2 as oip
from penult.v1 import penult_pb2 as pb

FULL = os.environ.get("PENULT_FULL") == "1"
ROUNDS = range(10 if FULL else 1)
_MODEL_LOOKS_AT = Preprocess(resize=8, crop=8)
_INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT.value[0]
_WAIT_S = 240
_CALLERS = 4


class Told(NamedTuple):
    """What a server said of one image."""

    label: str
    descriptor: tuple[float, ...]
    reason: str
    code: int


@cache
def expected(name: str) -> Told:
    """What it must say: the answer that the image gets alone, in this process."""
    case = corpus()[name]
    if case.reason:
        return Told("", (), case.reason, _INVALID_ARGUMENT)
    crop = crop_encoded(case.data, _MODEL_LOOKS_AT, LEARNING_LIMITS)
    means = crop.reshape(-1, 3).mean(axis=0) / 255
    return Told("bright" if means.sum() > 1.5 else "dark", tuple(means), "", 0)


def wrong(cases: list[Case], told: list[Told]) -> list[tuple[str, Told, Told]]:
    """Where a server said something else than it must."""
    assert len(told) == len(cases)
    return [
        (case.name, said, expected(case.name))
        for case, said in zip(cases, told, strict=True)
        if said[2:] != expected(case.name)[2:]
        or said.label not in ("", expected(case.name).label)
        or (said.descriptor and not np.allclose(said.descriptor, expected(case.name).descriptor, atol=1e-4))
    ]


def classified(response: pb.ClassifyResponse) -> Iterator[Told]:
    for result in response.results:
        answer, error = result.classification, result.error
        assert result.HasField("classification") != result.HasField("error")
        yield Told(answer.label, tuple(answer.descriptor_vector.values), error.reason, error.code)


def described(response: pb.DescribeResponse) -> Iterator[Told]:
    for result in response.results:
        yield Told("", tuple(result.descriptor_vector.values), result.error.reason, result.error.code)


def groups(cases: list[Case], seed: int) -> list[list[Case]]:
    """The cases in pieces of random size."""
    rng, pieces, at = random.Random(seed), [], 0
    while at < len(cases):
        size = rng.choice((1, 2, 3, 8, 20, 60))
        pieces.append(cases[at : at + size])
        at += size
    return pieces


def asking(kind: Callable, cases: list[Case], **fields: object) -> pb.ClassifyRequest | pb.DescribeRequest:
    return kind(images=[pb.Image(encoded=case.data) for case in cases], **fields)


# -- doors: each returns what was said of the cases, in their order ------------------------------------------------------


def one_by_one(stub, oip_stub, cases: list[Case], seed: int) -> list[Told]:  # noqa: F811
    """A request per image, from several callers at once."""

    def ask(case: Case) -> list[Told]:
        request = asking(pb.ClassifyRequest, [case], include_descriptor=True)
        return list(classified(stub.Classify(request, timeout=_WAIT_S)))

    with ThreadPoolExecutor(_CALLERS) as pool:
        return [told for answer in pool.map(ask, cases) for told in answer]


def in_batches(stub, oip_stub, cases: list[Case], seed: int) -> list[Told]:  # noqa: F811
    """Good and bad images in one request, several such requests at once."""

    def ask(piece: list[Case]) -> list[Told]:
        request = asking(pb.ClassifyRequest, piece, include_descriptor=True)
        return list(classified(stub.Classify(request, timeout=_WAIT_S)))

    with ThreadPoolExecutor(_CALLERS) as pool:
        return [told for answer in pool.map(ask, groups(cases, seed)) for told in answer]


def as_a_stream(stub, oip_stub, cases: list[Case], seed: int) -> list[Told]:  # noqa: F811
    """Pieces of random size over the stream of Classify."""
    requests = (asking(pb.ClassifyRequest, piece, include_descriptor=True) for piece in groups(cases, seed + 1))
    return [told for answer in stub.StreamClassify(requests, timeout=_WAIT_S) for told in classified(answer)]


def described_as_a_stream(stub, oip_stub, cases: list[Case], seed: int) -> list[Told]:  # noqa: F811
    """Pieces of random size over the stream of Describe."""
    requests = (asking(pb.DescribeRequest, piece) for piece in groups(cases, seed + 2))
    return [told for answer in stub.StreamDescribe(requests, timeout=_WAIT_S) for told in described(answer)]


def by_the_other_protocol(stub, oip_stub, cases: list[Case], seed: int) -> list[Told]:  # noqa: F811
    """The Open Inference Protocol, where a bad image fails its request."""

    def ask(case: Case) -> Told:
        tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
        wanted = [oip.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in ("descriptor", "labels")]
        raw = len(case.data).to_bytes(4, "little") + case.data
        request = oip.ModelInferRequest(model_name="light", inputs=[tensor], outputs=wanted, raw_input_contents=[raw])
        try:
            answer = oip_stub.ModelInfer(request, timeout=_WAIT_S)
        except grpc.RpcError as error:
            return Told("", (), dict(error.trailing_metadata())["penult-reason"], error.code().value[0])
        numbers, label = answer.raw_output_contents
        return Told(label[4:].decode(), tuple(np.frombuffer(numbers, "<f4")), "", 0)

    with ThreadPoolExecutor(_CALLERS) as pool:
        return list(pool.map(ask, cases))


DOORS = (one_by_one, in_batches, as_a_stream, described_as_a_stream, by_the_other_protocol)


@pytest.mark.filterwarnings("ignore")  # Pillow's, while this process decodes
@pytest.mark.timeout(3600)
def test_the_corpus_does_not_push_the_server_over(victim, stub, oip_stub, record_property):  # noqa: F811
    """Each image gets its answer every time, whatever came before and beside it, and the process lives on."""
    answers, sent = 0, list(corpus().values()) if FULL else representatives()
    for seed in ROUNDS:
        for place, door in enumerate(DOORS):
            # The largest go through another door each round, in ten rounds through every one twice.
            cases = [case for case in sent if not case.is_slow or place == seed % len(DOORS)]
            random.Random(10 * seed + place).shuffle(cases)
            if (
                door is by_the_other_protocol
            ):  # takes base64, and finds a broken JPEG in it: tests/service/oip/test_grpc_servicer.py
                cases = [case for case in cases if case.name != "other-base64"]
            assert wrong(cases, door(stub, oip_stub, cases, seed)) == [], f"{door.__name__}, round {seed}"
            answers += len(cases)
        print(f"round {seed}: {answers} answers, peak {victim.status('VmHWM')} MiB, now {victim.status('VmRSS')} MiB")
    record_property("answers", answers)
    record_property("peak_rss_mib", victim.status("VmHWM"))
    assert victim.status("VmHWM") < MEMORY_BYTES >> 20
    text = httpx.get(f"{victim.http}/metrics").text
    codes = {
        line.split('code="')[1].split('"')[0] for line in text.splitlines() if line.startswith("penult_requests_total{")
    }
    assert codes == {"OK", "INVALID_ARGUMENT"}


def test_the_costliest_photos_at_one_time(victim, stub):  # noqa: F811
    """Photos of a few kilobytes that take most memory to decode wait for each other, though many come at once."""
    names = ("webp-large-clear", "png-large-rgba", "jpeg-large-progressive", "png-large-grey16") * (4 if FULL else 2)
    cases = [corpus()[name] for name in names]
    assert sum(len(case.data) for case in cases) < 4 << 20
    assert wrong(cases, one_by_one(stub, None, cases, 0)) == []
    assert victim.status("VmHWM") < MEMORY_BYTES >> 20
