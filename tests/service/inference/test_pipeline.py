"""Admission, decoding, batching and scoring together, on a real onnxruntime session, without gRPC."""

import asyncio
import math
import pickle
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from sklearn.svm import LinearSVC

from penult.bundle.errors import ImageError
from penult.bundle.reader import read_bundle
from penult.lookup.types import Hit
from penult.service.config import ServeConfig
from penult.service.errors import BadOutput, InvalidRequest, LacksScorer, ModelReplaced, NotReady, Overloaded
from penult.service.inference.decoder import EncodedPhoto, RawPhoto
from penult.service.inference.pipeline import Pipeline
from penult.service.inference.results import Answer
from penult.service.inference.workers import WorkTime
from penult.service.models.loader import Placement, load
from penult.service.observability.metrics import Metrics
from penult.service.process.wiring import inference_limits
from penult.service.runtime.cuda_session import DeviceSession
from penult.service.runtime.session import CUDA


@pytest.fixture
def metrics():
    """Metrics of this test."""
    return Metrics(CollectorRegistry())


@pytest.fixture
def light(publish_brightness, tmp_path):
    """Load a model of dark and bright photos: light(most_images=…)."""

    def make(**options):
        publish_brightness(tmp_path, **options)
        return load(read_bundle(tmp_path / "light"), Placement("cpu"))

    return make


@pytest.fixture
def svm_files():
    """Fit an SVM on brightness, as files for publish_brightness."""
    descriptors = np.repeat(np.linspace(0, 1, 20, dtype=np.float32)[:, None], 3, axis=1)
    model = LinearSVC(random_state=0).fit(descriptors, (descriptors[:, 0] > 0.5).astype(int))
    return model, {"svm.pkl": pickle.dumps(model, protocol=5)}


@pytest.fixture
def run(metrics):
    """Run a scenario with a pipeline that serves a model: run(model, scenario, **settings); it is closed after."""

    def start(model, scenario, **settings):
        async def whole():
            pipeline = Pipeline(inference_limits(ServeConfig(**({"threads": 2} | settings))), metrics)
            pipeline.serve(model)
            try:
                return await scenario(pipeline)
            finally:
                await pipeline.close()

        return asyncio.run(whole())

    return start


def grey(level: int) -> RawPhoto:
    """Return a photo of one grey level."""
    return RawPhoto(8, 8, bytes([level]) * 192)


def crop(level: int) -> RawPhoto:
    """Return a photo of one grey level that is cut to the model's size already."""
    return RawPhoto(8, 8, bytes([level]) * 192, is_crop=True)


def test_a_device_is_driven_by_its_own_thread(light, run, encode, monkeypatch, tmp_path):
    """A session with a driver runs on that thread alone, in its buckets, however many requests come at once."""
    model = light()
    bundle = read_bundle(tmp_path / "light")
    session = DeviceSession(bundle.onnx, bundle.manifest, 4)
    session.provider = CUDA  # stands for a device: it is not the decoding threads' to run
    seen = []
    right = DeviceSession.run_images

    def spy(self, images):
        seen.append((threading.get_ident(), len(images)))
        return right(self, images)

    monkeypatch.setattr(DeviceSession, "run_images", spy)
    levels = [20, 230] * 8

    async def scenario(pipeline):
        asked = (pipeline.classify(model, [EncodedPhoto(encode(level))], None, 1) for level in levels)
        return await asyncio.gather(*asked)

    model = replace(model, session=session)
    answers = run(model, scenario, batch_max_images=4)
    labels = [outcomes[0].classes[0].label for _, outcomes, _ in answers]
    assert labels == ["dark", "bright"] * 8
    assert {thread for thread, _ in seen} == {session._thread}
    assert sum(images for _, images in seen) == 16
    assert max(images for _, images in seen) <= 4


def test_outcomes_stand_in_the_order_of_the_photos(light, run, encode):
    """Good, undecodable and refused photos each keep their place in the answer."""
    refused = ImageError("IMAGE_EMPTY", "no source")
    photos = [grey(10), EncodedPhoto(b"text"), grey(240), refused, EncodedPhoto(encode(20)), RawPhoto(1, 1, b"")]
    model = light()
    scorer, outcomes, timings = run(model, lambda p: p.classify(model, photos, None, 5))
    assert scorer == "dense"
    labels = [o.classes[0].label if isinstance(o, Answer) else o.reason for o in outcomes]
    assert labels == ["dark", "IMAGE_UNKNOWN_FORMAT", "bright", "IMAGE_EMPTY", "dark", "IMAGE_WRONG_LENGTH"]
    assert 0 < timings.inference <= timings.total
    assert 0 < timings.decode <= timings.total


def test_bad_photos_are_counted(light, run, metrics, samples):
    """A photo that cannot be decoded is one drop with the reason bad_image, and costs no run of the model."""
    model = light()
    run(model, lambda p: p.classify(model, [EncodedPhoto(b"text"), EncodedPhoto(b"")], None, 5))
    found = samples(metrics)
    assert found[("penult_dropped_total", ("reason", "bad_image"))] == 2
    assert found[("penult_batch_size_count",)] == 0


def test_a_model_without_finite_numbers_is_our_fault(light, run):
    """Logits that are NaN or infinite become BadOutput for that photo, and leave the others alone."""
    model = light(nan_at_white=True)
    _, outcomes, _ = run(model, lambda p: p.classify(model, [grey(10), grey(255), grey(200)], None, 5))
    assert [type(outcome) for outcome in outcomes] == [Answer, BadOutput, Answer]
    assert outcomes[1].reason == "MODEL_NOT_FINITE"


def test_describing_asks_no_scorer(light, run):
    """describe() gives descriptors without classes, and errors in their place."""
    model = light()
    outcomes, timings = run(model, lambda p: p.describe(model, [grey(51), EncodedPhoto(b"text"), grey(255)]))
    assert [type(outcome) for outcome in outcomes] == [Answer, ImageError, Answer]
    assert outcomes[0].classes == ()
    np.testing.assert_allclose(outcomes[0].descriptor, [0.2] * 3, atol=1e-6)
    assert 0 < timings.inference <= timings.total


@pytest.mark.parametrize("method", ["classify", "score"])
def test_a_missing_scorer_is_a_failed_request(light, run, method):
    """Asking a model for a scorer that it lacks raises LacksScorer before anything is decoded."""
    model = light()

    async def scenario(pipeline):
        if method == "classify":
            return await pipeline.classify(model, [grey(1)], "svm", 5)
        return await pipeline.score(model, [np.ones(3, dtype=np.float32)], 5)

    with pytest.raises(LacksScorer, match="light version 1 has no svm scorer; ask for dense"):
        run(model, scenario)


def test_scoring_descriptors_keeps_errors_in_place(light, run, svm_files):
    """score() answers the good descriptors with the SVM's numbers and repeats the errors where they stood."""
    estimator, files = svm_files
    goldens = {"svm_scores": np.array([[-1.0, 1.0]], dtype=np.float32)}
    descriptors = [np.full(3, level, dtype=np.float32) for level in (20 / 255, 230 / 255)]
    scores = estimator.decision_function(descriptors).astype(np.float32)
    goldens = {"svm_scores": np.stack([-scores, scores], axis=1)}
    model = light(files=files, goldens=goldens)
    wrong = InvalidRequest("DESCRIPTOR_LENGTH", "too short")

    async def scenario(pipeline):
        return await pipeline.score(model, [descriptors[0], wrong, descriptors[1]], 1)

    outcomes, timings = run(model, scenario)
    assert outcomes[1] is wrong
    assert [outcomes[0].classes[0].label, outcomes[2].classes[0].label] == ["dark", "bright"]
    assert outcomes[2].classes[0].score == pytest.approx(scores[1], rel=1e-4)
    assert timings.total > 0


@pytest.mark.parametrize("bound", [{"queue_max_images": 10}, {"queue_max_bytes": 10 * 192}], ids=["images", "bytes"])
def test_a_full_queue_refuses_and_recovers(light, run, gate_here, metrics, samples, bound):
    """Above either bound a request is refused with a hint and counted, and fits again once others are answered."""
    model = light()

    async def scenario(pipeline):
        gate_here.shut()
        first = asyncio.ensure_future(pipeline.classify(model, [grey(10)] * 6, None, 5))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as caught:
            await pipeline.classify(model, [grey(10)] * 5, None, 5)
        small = asyncio.ensure_future(pipeline.classify(model, [grey(10)] * 4, None, 5))
        await asyncio.sleep(0)
        gate_here.open()
        await first
        again = await pipeline.classify(model, [grey(10)] * 5, None, 5)
        return caught.value, len((await small)[1]), len(again[1])

    error, small, again = run(model, scenario, **bound)
    assert (error.reason, small, again) == ("QUEUE_FULL", 4, 5)
    assert error.retry_after_ms >= 50
    assert samples(metrics)[("penult_dropped_total", ("reason", "queue_full"))] == 5


def test_a_lone_request_always_fits(light, run):
    """A request larger than the whole queue is answered when nothing else is going on."""
    model = light()
    outcomes = run(model, lambda p: p.classify(model, [grey(10)] * 20, None, 5), queue_max_images=4)[1]
    assert len(outcomes) == 20


def test_leaving_gives_the_room_back(light, run, gate_here):
    """Cancelled and failed requests no longer count as in flight."""
    model = light()

    async def scenario(pipeline):
        for _ in range(3):
            gate_here.shut()
            arrived = gate_here.arrived
            task = asyncio.ensure_future(pipeline.classify(model, [grey(10)] * 10, None, 5))
            await asyncio.to_thread(gate_here.wait_for, arrived + 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            gate_here.open()
        good = asyncio.ensure_future(pipeline.classify(model, [grey(10)] * 5, None, 5))
        await asyncio.sleep(0)
        return await asyncio.gather(good, pipeline.classify(model, [grey(10)] * 5, None, 5))

    answers = run(model, scenario, queue_max_images=10)
    assert [len(outcomes) for _, outcomes, _ in answers] == [5, 5]


def test_a_fault_of_the_runtime_fails_the_request_and_not_the_next(light, run):
    """What onnxruntime raises becomes an error worth another try; later requests are answered."""
    # On one thread the crops become batches of 8, and halves of 4, that are larger than this model can bear.
    model = light(most_images=2)

    async def scenario(pipeline):
        with pytest.raises(NotReady, match="try again"):
            await pipeline.classify(model, [crop(10)] * 9, None, 5)
        return await pipeline.classify(model, [grey(10)], None, 5)

    assert len(run(model, scenario, threads=1, batch_max_images=8)[1]) == 1


def test_closing_waits_for_answers(light, run, gate_here):
    """close() ends only when the photos that were accepted are answered, and leaves no thread behind."""
    model = light()

    async def scenario(pipeline):
        gate_here.shut()
        task = asyncio.ensure_future(pipeline.classify(model, [grey(10)] * 4, None, 5))
        await asyncio.to_thread(gate_here.wait_for, 1)
        closing = asyncio.ensure_future(pipeline.close())
        await asyncio.sleep(0.05)
        assert not task.done()
        assert not closing.done()
        gate_here.open()
        await closing
        assert not [thread for thread in threading.enumerate() if thread.name.startswith(("worker", "driver"))]
        return await asyncio.wait_for(task, 0.1)  # it is answered already

    assert len(run(model, scenario, threads=1, batch_max_images=1)[1]) == 4


def test_scoring_is_timed(light, run, metrics, samples):
    """Decoding is timed per photo, scoring per request."""
    model = light()
    run(model, lambda p: p.classify(model, [grey(1), grey(2), grey(3)], None, 5))
    found = samples(metrics)
    assert found[("penult_phase_seconds_count", ("phase", "decode"))] == 3
    assert found[("penult_phase_seconds_count", ("phase", "queue"))] == 3
    assert found[("penult_phase_seconds_count", ("phase", "score"))] == 1


def test_a_request_that_would_be_late_is_refused_at_once(light, run, gate_here, metrics, samples, monkeypatch):
    """Where the queue takes longer than the client waits, the request is refused with a hint and costs no run."""
    model = light()
    monkeypatch.setattr(WorkTime, "wait_s", lambda self, images: 0.5 * images)

    async def scenario(pipeline):
        gate_here.shut()
        first = asyncio.ensure_future(pipeline.classify(model, [grey(10)] * 6, None, 5))
        await asyncio.to_thread(gate_here.wait_for, 1)
        with pytest.raises(Overloaded) as caught:
            await pipeline.classify(model, [grey(10)] * 2, None, 5, expires=time.perf_counter() + 0.05)
        assert not first.done()
        patient = asyncio.ensure_future(
            pipeline.classify(model, [grey(10)], None, 5, expires=time.perf_counter() + 600)
        )
        await asyncio.sleep(0)
        gate_here.open()
        await first
        return caught.value, await patient

    error, (_, outcomes, _) = run(model, scenario, threads=1)
    assert (error.reason, len(outcomes)) == ("QUEUE_TOO_LONG", 1)
    assert error.retry_after_ms >= 50
    assert samples(metrics)[("penult_dropped_total", ("reason", "too_late"))] == 2


def test_leaving_is_counted_in_photos(light, run, gate_here, metrics, samples):
    """A cancelled request's photos are counted as dropped, once each."""
    model = light()

    async def scenario(pipeline):
        gate_here.shut()
        task = asyncio.ensure_future(pipeline.classify(model, [grey(10)] * 3, None, 5))
        await asyncio.to_thread(gate_here.wait_for, 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        gate_here.open()

    run(model, scenario)
    assert samples(metrics)[("penult_dropped_total", ("reason", "cancelled"))] == 3


def test_what_nobody_waits_for_is_not_decoded(light, run, gate_here, metrics, samples, encode):
    """After its request was cancelled, a photo that waits for a thread is passed over."""
    model = light()

    async def scenario(pipeline):
        gate_here.shut()
        task = asyncio.ensure_future(pipeline.classify(model, [EncodedPhoto(encode(10))] * 20, None, 5))
        await asyncio.to_thread(gate_here.wait_for, 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        gate_here.open()
        await pipeline.classify(model, [grey(10)], None, 5)

    run(model, scenario, threads=1)
    assert samples(metrics)[("penult_phase_seconds_count", ("phase", "decode"))] < 6


def test_waiting_for_a_thread_is_queueing(light, run, gate_here, encode):
    """Of photos that wait for the only thread, the last one's queueing is what the others took."""
    model = light()

    async def scenario(pipeline):
        gate_here.shut()
        task = asyncio.ensure_future(pipeline.classify(model, [EncodedPhoto(encode(10))] * 4, None, 5))
        await asyncio.to_thread(gate_here.wait_for, 1)
        await asyncio.sleep(0.2)
        gate_here.open()
        return await task

    timings = run(model, scenario, threads=1)[2]
    assert timings.total > timings.queue >= 0.2


def test_a_delay_leaves_the_decoding_threads_free(light, run, metrics, samples, encode):
    """With one thread and a delay, photos are decoded while the first of them waits for company, and share its run."""
    model = light()
    photos = [EncodedPhoto(encode(10))] * 4
    run(model, lambda p: p.classify(model, photos, None, 5), threads=1, batch_delay_ms=500, batch_max_images=4)
    found = samples(metrics)
    assert (found[("penult_batch_size_count",)], found[("penult_batch_size_sum",)]) == (1, 4)


def test_queue_depth_counts_what_waits(light, run, gate_here, metrics, samples, encode):
    """Photos that wait for a thread or for the model are counted, bad, cancelled and running ones are not."""
    model = light()

    async def scenario(pipeline):
        photos = [EncodedPhoto(encode(10)), crop(10), grey(20), EncodedPhoto(b"text"), ImageError("IMAGE_EMPTY", "-")]
        gate_here.shut()
        tasks = [asyncio.ensure_future(pipeline.classify(model, photos, None, 5)) for _ in range(2)]
        await asyncio.sleep(0)
        depth = samples(metrics)[("penult_queue_depth",)]
        tasks[1].cancel()
        gate_here.open()
        await asyncio.gather(*tasks, return_exceptions=True)
        await pipeline.classify(model, [grey(10)], None, 5)
        return depth

    assert 7 <= run(model, scenario, threads=1) <= 8
    assert samples(metrics)[("penult_queue_depth",)] == 0


def test_several_wants_share_one_pass(light, run, gate_here, metrics, samples):
    """Requests for classes and for descriptors that wait together become one run of the model."""
    model = light()

    async def scenario(pipeline):
        gate_here.shut()
        first = asyncio.ensure_future(pipeline.classify(model, [crop(1)], None, 5))
        await asyncio.to_thread(gate_here.wait_for, 1)
        rest = [pipeline.classify(model, [crop(10)], None, 5), pipeline.describe(model, [crop(200)])]
        tasks = [asyncio.ensure_future(each) for each in rest]
        await asyncio.sleep(0)
        gate_here.open()
        (_, (dark,), _), ((bright,), _) = await asyncio.gather(*tasks)
        await first
        return dark.classes[0].label, bright.descriptor

    label, descriptor = run(model, scenario, threads=1, batch_max_images=8)
    assert label == "dark"
    np.testing.assert_allclose(descriptor, [200 / 255] * 3, atol=1e-5)
    found = samples(metrics)
    assert (found[("penult_batch_size_count",)], found[("penult_batch_size_sum",)]) == (2, 3)


def test_a_bug_on_a_thread_reaches_the_caller(light, run, monkeypatch):
    """What goes wrong on a thread fails its request, and the thread goes on with the next."""
    model = light()

    async def scenario(pipeline):
        with monkeypatch.context() as patch:
            patch.setattr("penult.service.inference.scoring.ClassScores.ranked", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await asyncio.wait_for(pipeline.classify(model, [grey(10)], None, 5), 10)
        return await pipeline.classify(model, [grey(10)], None, 5)

    assert len(run(model, scenario, threads=1)[1]) == 1


def test_batches_on_cpus_are_short_unless_a_setting_decides(light):
    """On CPUs a batch has at most 4 images and 10 ms by default; with a setting only its images count."""
    model, usual, set_ = light(), inference_limits(ServeConfig()), inference_limits(ServeConfig(batch_max_images=5))
    assert (usual.batch_images(model), usual.batch_s(model)) == (4, 0.010)
    assert (set_.batch_images(model), set_.batch_s(model)) == (5, math.inf)


def test_a_model_that_was_unloaded_meanwhile_is_named(light, run):
    """Who looked a model up just before it was unloaded is told to look again, and the queue's places are free."""
    model = light()

    async def scenario(pipeline):
        await pipeline.unload(model)
        for ask in (
            lambda: pipeline.classify(model, [grey(10)], None, 5),
            lambda: pipeline.describe(model, [grey(10)]),
        ):
            with pytest.raises(ModelReplaced):
                await ask()
        return pipeline.admission.is_empty

    assert run(model, scenario)


def test_a_search_that_ends_after_its_model_counts_nothing(light, run, metrics, samples):
    """A model that is retired while its neighbours are looked for: the answer goes out, and no series comes back."""
    model = light()

    async def scenario(pipeline):
        await pipeline.unload(model)
        pipeline.record_neighbours(model, [[Hit("a", 0.9, "", {})]])

    run(model, scenario)
    assert not [name for name, *_ in samples(metrics) if name.startswith("penult_neighbour_distance_")]
