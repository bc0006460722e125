"""A shadow sees what clients were answered, is compared, and takes no part in what clients get."""

import threading
from math import comb

import httpx
import pytest
from prometheus_client import CollectorRegistry
from tests.fixtures.gates import eventually

from penult.bundle.guards import PixelBudget
from penult.bundle.reader import read_bundle
from penult.client import Client, RequestFailed
from penult.service.config import ServeConfig
from penult.service.errors import Overloaded
from penult.service.inference.admission import RequestAdmission
from penult.service.inference.decoder import Decoder, EncodedPhoto, RawPhoto
from penult.service.inference.shadow import Shadows
from penult.service.models.loader import Placement, load, load_shadow
from penult.service.observability.call import Call, DrainGate, Envelope, Method
from penult.service.observability.comparisons import what_it_says
from penult.service.observability.metrics import Metrics
from penult.service.observability.sequential import LIMIT, evidence_of_worse
from penult.service.observability.truths import Truth
from penult.service.process import wiring
from penult.v1 import penult_pb2_grpc

PAIR = ("model", "light"), ("primary", "1"), ("version", "2")


@pytest.fixture
def versions(publish_brightness, tmp_path):
    """A repository with light: version 1 is right, version 2 calls dark what is bright."""
    publish_brightness(tmp_path)
    publish_brightness(tmp_path, classes=("bright", "dark"))
    return tmp_path


def images_of(found: dict) -> dict[str, float]:
    """The images for shadows, by outcome."""
    name = "penult_shadow_images_total"
    return {dict(key[1:])["outcome"]: value for key, value in found.items() if key[0] == name}


def test_only_the_comparison_shows_a_shadow(versions, start_server, samples, encode, connect, request_of):
    """Every door is compared and feedback counts for both versions; no client reaches the shadow, no other metric has it."""
    server = start_server(versions, "--http", "--shadow", "light=2", "--shadow-share", "1")
    bright = encode(230)
    with Client(server.target) as client:
        assert [(each.version.name, each.version.version) for each in client.list_models()] == [("light", 1)]
        with pytest.raises(RequestFailed, match="version 1 is served"):
            client.classify([bright], version=2)
        answers = [client.classify([bright, b"broken"]) for _ in range(12)]
        assert {(each.version, each.results[0].label) for each in answers} == {(1, "bright")}
        stub = penult_pb2_grpc.PenultServiceStub(connect(server.target))
        assert len(list(stub.StreamClassify(iter([request_of(bright)] * 2)))) == 2
        headers = {"content-type": "application/octet-stream"}
        httpx.post(f"{server.http}/try?model=light", content=bright, headers=headers).raise_for_status()
        tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": [230] * 192}
        httpx.post(f"{server.http}/v2/models/light/infer", json={"inputs": [tensor]}).raise_for_status()
        eventually(lambda: images_of(samples(server.http)) == {"compared": 16, "shed": 0, "failed": 0})
        client.feedback([each.truth(0, "bright") for each in answers])
    found = samples(server.http)
    assert (found["penult_shadow_agreement", *PAIR], found["penult_shadow_agreement_images", *PAIR]) == (0, 16)
    assert found["penult_shadow_feedback", PAIR[0], ("outcome", "only_primary_right"), *PAIR[1:]] == 12
    assert found["penult_shadow_worse", *PAIR] == 1
    for name in ("confidence", "seconds"):
        primary, shadow = (
            found[f"penult_shadow_{name}", PAIR[0], ("of", of), *PAIR[1:]] for of in ("primary", "shadow")
        )
        assert primary > 0 and shadow > 0
    others = [key for key in found if ("version", "2") in key and not key[0].startswith("penult_shadow_")]
    assert others == []
    assert sum(value for key, value in found.items() if key[0] == "penult_answers_total") == 16
    assert server.log.read_text().count("light version 2, a shadow, is worse than version 1") == 1
    told = httpx.get(f"{server.http}/status.json").json()
    assert [(model["model"], model["version"]) for model in told["models"]] == [("light", "1")]
    (shadow,) = told["shadows"]
    assert (shadow["is_worse"], shadow["primary"], shadow["agreement"]["share"]) == (True, 1, 0)
    assert [rate["share"] for rate in shadow["accuracy"]] == [1, 0]
    server.process.terminate()
    assert server.process.wait(60) == 0


# -- what the queue does, without a server -----------------------------------------------------------------------------


class Bench:
    """A shadow of `light`, its model, and whether the machine has time for it."""

    def __init__(self, root, share: float = 1.0) -> None:
        self.metrics, self.is_idle = Metrics(CollectorRegistry()), threading.Event()
        config = ServeConfig()
        decoder = Decoder(config.image_limits, PixelBudget(config.decode_max_pixels))
        self.shadows = Shadows({"light": 2}, share, decoder, self.is_idle.is_set, self.metrics)
        self.primary = load(read_bundle(root / "light", 1), Placement("cpu"))
        self.shadow = load_shadow(read_bundle(root / "light", 2), Placement("cpu"))
        self.shadows.serve(self.shadow)

    def offer(self, key: str, *photos) -> None:
        """Offer answers of version 1."""
        self.shadows.offer(self.primary, key, [("bright", 0.9)] * len(photos), photos)

    def work(self) -> None:
        """Let the shadow see what waits."""
        self.is_idle.set()
        self.shadows.wake()


@pytest.fixture
def make_bench(versions):
    """Make a Bench; its thread ends with the test."""
    made = []

    def make(share: float = 1.0) -> Bench:
        made.append(Bench(versions, share))
        return made[-1]

    yield make
    for bench in made:
        bench.shadows.close()


def test_requests_come_first(make_bench, samples, encode):
    """Nothing runs while requests wait; the oldest of too many images are dropped, and all at a refusal and a drain."""
    bench = make_bench()
    photo = EncodedPhoto(encode(230))
    for number in range(300):
        bench.offer(f"{number:x}", photo)
        bench.shadows.wake()
    assert images_of(samples(bench.metrics)) == {"compared": 0, "shed": 300 - 256, "failed": 0}
    admission = RequestAdmission(1, 100, bench.metrics)
    admission.listeners.append(bench.shadows.shed)
    admission.admit("a", 1, 1, lambda images: 0.0, float("inf"))
    with pytest.raises(Overloaded):
        admission.admit("b", 1, 1, lambda images: 0.0, float("inf"))
    assert images_of(samples(bench.metrics))["shed"] == 300
    bench.offer("more", photo)
    answers, asked = iter((True, False)), threading.Event()
    bench.shadows._is_idle = lambda: next(answers, None) or asked.set()
    bench.shadows.wake()  # a request comes before the thread runs
    asked.wait()
    assert images_of(samples(bench.metrics))["compared"] == 0
    bench.shadows._is_idle = bench.is_idle.is_set
    bench.work()
    eventually(lambda: images_of(samples(bench.metrics))["compared"] == 1)
    bench.is_idle.clear()
    bench.offer("last", photo)
    bench.shadows.close()
    bench.offer("too late", photo)
    bench.shadows.shed()
    assert images_of(samples(bench.metrics)) == {"compared": 1, "shed": 301, "failed": 0}


def test_the_server_sheds_by_its_own_admission(make_bench, versions):
    """What the server builds looks at the pipeline's admission, and is shed at its refusals."""
    metrics = Metrics(CollectorRegistry())
    admission = RequestAdmission(1, 1, metrics)
    found = wiring.shadows(ServeConfig(shadow="light=2"), admission, metrics)
    assert admission.listeners == [found.shed]
    assert found._is_idle()
    admission.admit("a", 1, 1, lambda images: 0.0, float("inf"))
    assert not found._is_idle()
    assert wiring.shadows(ServeConfig(), admission, metrics) is None


def test_the_end_of_a_call_wakes_it():
    """A call wakes the shadow after it has left the drain gate, and not before."""
    gate, woken = DrainGate(), []
    envelope = Envelope(Metrics(CollectorRegistry()), gate, after_call=lambda: woken.append(gate._requests._count))
    with Call(Method(envelope, "Classify", "Classify", "Classify"), str, dict) as call:
        call.admit()
        assert woken == []
    assert woken == [0]


def test_feedback_joins_before_and_after_the_shadow_answers(make_bench, samples, encode):
    """A verdict that comes first waits for the shadow's answer; one that replaces another counts in its place."""
    bench = make_bench()
    photo = EncodedPhoto(encode(230))

    def truth(key: str, outcome: str, label: str, version: int = 1) -> Truth:
        return Truth(key, 0, "", "light", version, "bright", 0.9, outcome, label)

    bench.offer("first", photo)
    bench.shadows.judge(truth("first", "right", "bright"))
    bench.work()
    name = "penult_shadow_feedback"

    def counts() -> dict[str, float]:
        found = samples(bench.metrics)
        return {dict(key[1:])["outcome"]: value for key, value in found.items() if key[0] == name and value}

    eventually(lambda: counts() == {"only_primary_right": 1})
    bench.shadows.judge(truth("first", "wrong", "dark"))
    assert counts() == {"only_shadow_right": 1}
    bench.shadows.judge(truth("first", "unknown", ""))
    assert counts() == {}
    bench.shadows.judge(truth("never seen", "right", "bright"))
    bench.shadows.judge(truth("first", "right", "bright", version=7))
    assert counts() == {}


def test_an_image_that_the_shadow_cannot_use_is_counted(make_bench, samples, caplog):
    """Photos that cannot be decoded for it count as failed, in one line of the log, and the next one is compared."""
    bench = make_bench()
    bad = EncodedPhoto(b"no photo")
    bench.offer("bad", bad, bad, RawPhoto(8, 8, bytes([230]) * 192, is_crop=True))
    bench.work()
    eventually(lambda: images_of(samples(bench.metrics)) == {"compared": 1, "shed": 0, "failed": 2})
    assert caplog.text.count("shadow light version 2 fails: ") == 1


def test_the_share_is_a_hash_of_the_request(make_bench):
    """The same tenth of the requests is chosen every time, and none that another scorer answered."""
    bench, other = make_bench(0.1), make_bench(0.1)
    keys = [f"{number * 2654435761 % 2**64:016x}" for number in range(10_000)]
    chosen = [key for key in keys if bench.shadows.wants(bench.primary, "dense", key)]
    assert chosen == [key for key in keys if other.shadows.wants(other.primary, "dense", key)]
    assert 900 < len(chosen) < 1100
    assert not any(bench.shadows.wants(bench.primary, "svm", key) for key in keys)


# -- what is made of the counts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "label", "shadow", "found"),
    [
        ("right", "a", "a", "both_right"), ("right", "a", "b", "only_primary_right"), ("wrong", "b", "b", "only_shadow_right"),
        ("wrong", "b", "a", "both_wrong"), ("wrong", "b", "c", "both_wrong"), ("wrong", "", "a", "both_wrong"),
        ("wrong", "", "b", "unclear"), ("wrong", "(none)", "b", "both_wrong"), ("unknown", "", "b", ""),
    ],
)  # fmt: skip
def test_what_a_verdict_says_of_both(outcome, label, shadow, found):
    """An answer "a" was given; a verdict without the right class says nothing of another answer."""
    assert what_it_says(Truth("id", 0, "", "m", 1, "a", 0.5, outcome, label), shadow) == found


def test_evidence_is_fair():
    """Of equal versions its mean is 1 after any number of answers, so it can be looked at any time; more is more."""
    for answers in (1, 2, 7, 40):
        mean = sum(comb(answers, k) / 2**answers * evidence_of_worse(k, answers - k) for k in range(answers + 1))
        assert mean == pytest.approx(1)
    assert evidence_of_worse(0, 0) == pytest.approx(1)
    assert evidence_of_worse(40, 40) < 1 < LIMIT < evidence_of_worse(40, 15)
    assert evidence_of_worse(100_000, 0) > LIMIT > 1e-9 > evidence_of_worse(0, 100_000)
