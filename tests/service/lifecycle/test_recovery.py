"""When the device fails: halves, honest answers, a model built anew, readiness that goes and comes back.

The failures are onnxruntime's own where a model fails at a white photo; a session that can be broken stands for a GPU.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from penult.bundle.errors import PenultError
from penult.bundle.reader import read_bundle
from penult.service.config import ServeConfig
from penult.service.errors import NotReady, Overloaded, device_error
from penult.service.inference.decoder import EncodedPhoto
from penult.service.inference.pipeline import Pipeline
from penult.service.lifecycle import recovery
from penult.service.lifecycle.recovery import Recovery
from penult.service.models.loader import Placement, load
from penult.service.observability.metrics import Metrics
from penult.service.process.wiring import inference_limits
from penult.service.runtime.session import CUDA
from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc


class Breakable:
    """A session whose runs fail as long as `fails` says so; it calls itself a GPU's."""

    driver = None
    callers = 1

    def __init__(self, session: Any, provider: str = CUDA) -> None:
        self._session, self.provider = session, provider
        self.fails: Callable[[int], bool] = lambda images: False
        self.error = RuntimeError("CUDA failure 700: an illegal memory access was encountered")
        self.sizes: list[int] = []

    def run(self, pixels):
        return self.run_images(list(pixels))

    def run_images(self, images):
        self.sizes.append(len(images))
        if self.fails(len(images)):
            raise self.error
        return self._session.run_images(images)

    def run_features(self, images):
        return self._session.run_features(images)


@pytest.fixture
def broken(publish_brightness, tmp_path):
    """A model on a session that can be broken."""
    publish_brightness(tmp_path)
    model = load(read_bundle(tmp_path / "light"), Placement("cpu"))
    object.__setattr__(model, "session", Breakable(model.session))
    return model


def _run(model, scenario, on_device=lambda model, works: None, **config):
    """Run a scenario(pipeline) on a pipeline that serves the model; return what it returns, and the metrics."""

    async def act():
        metrics = Metrics()
        pipeline = Pipeline(inference_limits(ServeConfig(threads=2, lookup="off", **config)), metrics, on_device)
        pipeline.serve(model)
        try:
            return await scenario(pipeline), metrics
        finally:
            await pipeline.close()

    return asyncio.run(act())


def _count(metrics: Metrics, event: str) -> float:
    return metrics.registry.get_sample_value("penult_device_events_total", {"event": event})


def test_a_batch_that_does_not_fit_is_run_in_halves(broken, encode):
    """Where eight images are too many for the device and four are not, all eight are answered."""
    photos = [EncodedPhoto(encode(230))] * 8
    broken.session.fails = lambda images: images > 4
    heard = []
    (_, outcomes, _), metrics = _run(
        broken, lambda p: p.classify(broken, photos, None, 1), lambda m, works: heard.append(works),
        batch_max_images=8, batch_delay_ms=2000,
    )  # fmt: skip
    assert [outcome.classes[0].label for outcome in outcomes] == ["bright"] * 8
    assert broken.session.sizes == [8, 4, 4]
    assert (_count(metrics, "batch_retried"), _count(metrics, "batch_failed")) == (2, 0)
    assert heard == []


def test_a_moments_fault_is_tried_again(broken, encode):
    """A single image whose run fails once is run again, and answered."""
    failures = iter([True, False])
    broken.session.fails = lambda images: next(failures)
    (_, outcomes, _), metrics = _run(broken, lambda p: p.classify(broken, [EncodedPhoto(encode(230))], None, 1))
    assert outcomes[0].classes[0].label == "bright"
    assert _count(metrics, "batch_retried") == 1


def test_a_device_that_is_gone_is_told_and_worth_another_try(broken, encode):
    """Where the second try fails too, callers get UNAVAILABLE with a hint, and nothing of what CUDA said."""
    broken.session.fails = lambda images: True
    heard = []

    async def scenario(pipeline):
        with pytest.raises(PenultError) as caught:
            await pipeline.classify(broken, [EncodedPhoto(encode(230))], None, 1)
        await asyncio.sleep(0)
        broken.session.fails = lambda images: False
        await pipeline.classify(broken, [EncodedPhoto(encode(230))], None, 1)
        await asyncio.sleep(0)
        return caught.value

    error, metrics = _run(broken, scenario, lambda m, works: heard.append(works))
    assert isinstance(error, NotReady)
    assert error.reason == "DEVICE_FAILED"
    assert error.retry_after_ms > 0
    assert "CUDA" not in error.message
    assert heard == [False, True]
    assert _count(metrics, "batch_failed") == 1


@pytest.mark.parametrize(
    "text",
    [
        "Failed to allocate memory for requested buffer of size 1073741824",
        "CUDA error cudaErrorMemoryAllocation: out of memory",
        "std::bad_alloc",
        "BFCArena::AllocateRawInternal Available memory of 0 is smaller than requested bytes",
    ],
)
def test_memory_that_ran_out_is_a_full_server(text):
    """What onnxruntime and CUDA say when memory ran out becomes RESOURCE_EXHAUSTED, with a hint."""
    error = device_error(RuntimeError(text))
    assert isinstance(error, Overloaded)
    assert (error.reason, error.retry_after_ms) == ("DEVICE_MEMORY", 500)


class _Stand:
    """What Recovery acts upon, and what it did."""

    def __init__(self, works: list[bool]) -> None:
        self.works, self.rebuilt, self.changes, self.left = works, 0, 0, False
        self.metrics = Metrics()
        self.recovery = Recovery(self.rebuild, self._changed, self._leave, self.metrics)

    async def rebuild(self, model) -> bool:
        self.rebuilt += 1
        return self.works.pop(0) if self.works else True

    def _changed(self) -> None:
        self.changes += 1

    def _leave(self) -> None:
        self.left = True


def test_three_failures_in_a_row_end_readiness_until_something_works(broken, monkeypatch):
    """Two failures leave the server ready, three do not; a batch that works brings readiness back."""
    monkeypatch.setattr(recovery, "_FIRST_WAIT_S", 60)

    async def act():
        stand = _Stand([False])
        for expected in (True, True, False):
            stand.recovery.on_result(broken, works=False)
            assert stand.recovery.is_well is expected
        await asyncio.sleep(0.01)
        assert stand.rebuilt == 1
        assert stand.changes == 1
        stand.recovery.on_result(broken, works=True)
        assert stand.recovery.is_well
        assert stand.changes == 2

    asyncio.run(act())


def test_rebuilding_goes_on_until_it_works(broken, monkeypatch):
    """A model that cannot be rebuilt at first is tried again; once it is, the server is well."""
    monkeypatch.setattr(recovery, "_FIRST_WAIT_S", 0.001)

    async def act():
        stand = _Stand([False, False, True])
        for _ in range(3):
            stand.recovery.on_result(broken, works=False)
        while not stand.recovery.is_well:
            await asyncio.sleep(0.01)
        assert stand.rebuilt == 3
        assert not stand.left
        assert _count(stand.metrics, "rebuilt") == 1
        assert _count(stand.metrics, "rebuild_failed") == 2

    asyncio.run(act())


def test_rebuilding_has_its_rests(broken, monkeypatch):
    """A model that fails again right after it was rebuilt is rebuilt once more only after a while."""
    monkeypatch.setattr(recovery, "_REST_S", 0.2)

    async def act():
        stand, started = _Stand([True, True]), time.monotonic()
        stand.recovery.on_result(broken, works=False)
        while stand.rebuilt < 1 or stand.recovery._rebuilding:
            await asyncio.sleep(0.005)
        stand.recovery.on_result(broken, works=False)
        await asyncio.sleep(0.05)
        assert stand.rebuilt == 1
        while stand.rebuilt < 2:
            await asyncio.sleep(0.005)
        assert time.monotonic() - started >= 0.2

    asyncio.run(act())


@pytest.mark.parametrize(("provider", "leaves"), [(CUDA, True), ("CPUExecutionProvider", False)])
def test_a_gpu_that_does_not_come_back_ends_the_process(broken, monkeypatch, provider, leaves):
    """After five rebuilds that failed, a process on a GPU leaves, for a new one may do better; on a CPU it goes on."""
    monkeypatch.setattr(recovery, "_FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(recovery, "_LONGEST_WAIT_S", 0.001)
    broken.session.provider = provider

    async def act():
        stand = _Stand([False] * 8)
        stand.recovery.on_result(broken, works=False)
        while not stand.left and stand.works:
            await asyncio.sleep(0.01)
        assert stand.left is leaves
        assert stand.rebuilt == 5 if leaves else stand.rebuilt >= 8

    asyncio.run(act())


def test_a_gpu_that_is_lost_while_idle_is_noticed(broken, monkeypatch):
    """Without any request, a GPU is asked every two seconds, and one that fails ends readiness."""
    monkeypatch.setattr(recovery, "PROBE_S", 0.02)
    monkeypatch.setattr(recovery, "_FIRST_WAIT_S", 60)
    stand = None

    def hear(model, works):
        stand.recovery.on_result(model, works)

    async def scenario(pipeline):
        nonlocal stand
        stand = _Stand([False])
        task = asyncio.create_task(stand.recovery.probe(lambda: [broken], pipeline.probe))
        await asyncio.sleep(0.2)
        assert stand.recovery.is_well
        assert set(broken.session.sizes) == {1}
        broken.session.fails = lambda images: True
        end = time.monotonic() + 120
        while stand.recovery.is_well:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        broken.session.fails = lambda images: False
        while not stand.recovery.is_well:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        task.cancel()

    _run(broken, scenario, hear)


def test_a_server_recovers_by_itself(publish_brightness, tmp_path, start_server, connect, request_of, encode, samples):
    """A model that onnxruntime fails at is answered UNAVAILABLE, built anew meanwhile, and serves on as if nothing was."""
    publish_brightness(tmp_path, fails_at_white=True)
    server = start_server(tmp_path)
    stub = penult_pb2_grpc.PenultServiceStub(connect(server.target))
    assert stub.Classify(request_of(encode(230))).results[0].classification.label == "bright"
    white = encode(np.full((8, 8, 3), 255, dtype=np.uint8))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Classify(request_of(white))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    trailing = dict(caught.value.trailing_metadata())
    assert trailing["penult-reason"] == "DEVICE_FAILED"
    assert int(trailing["grpc-retry-pushback-ms"]) > 0
    assert "indices" not in caught.value.details()
    rebuilt = "penult_device_events_total", ("event", "rebuilt")
    end = time.monotonic() + 120
    while samples(server.http)[rebuilt] < 1:
        assert time.monotonic() < end, "not rebuilt in time"
        assert stub.Classify(request_of(encode(230))).results[0].classification.label == "bright"
    assert httpx.get(f"{server.http}/readyz").status_code == 200
    assert [m.version.version for m in stub.ListModels(pb.ListModelsRequest()).models] == [1]
    assert stub.Classify(request_of(encode(230))).results[0].classification.label == "bright"


def test_a_server_whose_device_fails_is_not_ready_until_it_works(
    publish_brightness, tmp_path, start_server, connect, request_of, encode, samples
):
    """Three failures in a row, and a model that cannot be built anew: 503, NOT_SERVING, `failing` on the page, while
    what works is answered; with the first answer it is ready again.
    """  # fmt: skip
    publish_brightness(tmp_path, fails_at_white=True)
    server = start_server(tmp_path, "--watch-s", "0")
    (tmp_path / "light" / "1" / "golden.npz").unlink()
    stub = penult_pb2_grpc.PenultServiceStub(connect(server.target))
    white = encode(np.full((8, 8, 3), 255, dtype=np.uint8))
    for _ in range(3):
        with pytest.raises(grpc.RpcError):
            stub.Classify(request_of(white))

    def ready() -> tuple[int, str]:
        return httpx.get(f"{server.http}/readyz").status_code, httpx.get(f"{server.http}/status.json").json()["state"]

    end = time.monotonic() + 120
    while ready() != (503, "failing"):
        assert time.monotonic() < end, ready()
    assert stub.Classify(request_of(encode(230))).results[0].classification.label == "bright"
    while ready() != (200, "ready"):
        assert time.monotonic() < end, ready()
    assert server.log.read_text().count("FILE_MISSING") == 1  # however often it was tried
    assert samples(server.http)["penult_reloads_total", ("outcome", "refused")] == 1
    assert httpx.get(f"{server.http}/status.json").json()["not_served"] == []
