"""Buckets, padding, staging and binding, run for real on the CPU provider: the plain session's answers, every time."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from penult.bundle.errors import BundleError
from penult.service.runtime import cuda_session
from penult.service.runtime.cuda_session import DeviceSession, provider_options, sizes
from penult.service.runtime.session import CPU, CUDA, ON_CUDA, Session, has_cuda_device

LIMIT = 11


@pytest.fixture(scope="module")
def plain(seeded):
    """The small network, run plainly."""
    return Session(seeded.onnx, seeded.manifest, "cpu")


@pytest.fixture(scope="module")
def session(seeded):
    """The small network in buckets up to 11, warmed."""
    made = DeviceSession(seeded.onnx, seeded.manifest, LIMIT)
    made.warm()
    yield made
    made.close()


@pytest.fixture(scope="module")
def images(seeded):
    """Three dozen images."""
    return seeded.images


def test_buckets_double_up_to_the_limit():
    """Buckets are 1, 2, 4, … and the limit, each once."""
    assert [sizes(limit) for limit in (1, 2, 3, 8, 11, 32)] == [
        [1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 11], [1, 2, 4, 8, 16, 32],
    ]  # fmt: skip


@pytest.mark.parametrize("count", range(1, LIMIT + 1))
def test_every_batch_size_gives_the_plain_answers(session, plain, images, count):
    """From one image to the limit, through run() and run_images(), rows are the plain session's within 1e-5."""
    chosen = images[count : 2 * count]
    expected = plain.run(chosen)
    for actual in (session.run(chosen), session.run_images(list(chosen))):
        for found, right in zip(actual, expected, strict=True):
            assert (found.dtype, found.shape) == (np.float32, right.shape)
            np.testing.assert_allclose(found, right, atol=1e-5 * np.abs(right).max())


def test_a_full_bucket_is_bit_equal(session, plain, images):
    """Where nothing is padded, the run is the plain one: equal to the last bit."""
    for size in sizes(LIMIT):
        for found, right in zip(session.run(images[:size]), plain.run(images[:size]), strict=True):
            np.testing.assert_array_equal(found, right)


def test_padding_never_reaches_an_answer(session, images):
    """Five images give the same bits whatever lay in the other three rows of their bucket before."""
    found = []
    for left_over in (0, 255, 77):
        session.run(np.full((8, *images.shape[1:]), left_over, dtype=np.uint8))
        found.append(session.run(images[:5]))
    for logits, descriptor in found[1:]:
        np.testing.assert_array_equal(logits, found[0][0])
        np.testing.assert_array_equal(descriptor, found[0][1])


def test_more_than_the_limit_goes_in_parts(session, plain, images):
    """36 images with a limit of 11 give 36 rows, in order."""
    logits, descriptor = session.run(images)
    expected = plain.run(images)
    np.testing.assert_allclose(logits, expected[0], atol=1e-5 * np.abs(expected[0]).max())
    np.testing.assert_allclose(descriptor, expected[1], atol=1e-5 * np.abs(expected[1]).max())


def test_no_image_gives_no_row(session, seeded):
    """An empty batch has empty answers of the right width."""
    logits, descriptor = session.run(np.zeros((0, *seeded.images.shape[1:]), dtype=np.uint8))
    assert (logits.shape, descriptor.shape) == ((0, 6), (0, seeded.manifest.descriptor_length))


def test_answers_are_copies(session, images):
    """What was returned stays as it was while later batches of the same bucket run."""
    kept = session.run(images[:4])
    copies = [array.copy() for array in kept]
    session.run(images[20:24])
    for array, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
        assert array.flags.writeable


def test_buffers_stay_where_they_are(session, images):
    """A hundred runs of all sizes leave every input, output and staging address as it was: CUDA graphs need that."""

    def addresses() -> list[int]:
        values = [value for bucket in session._buckets for value in (bucket._input, *bucket._outputs)]
        return [session._staging.ctypes.data, *(value.data_ptr() for value in values)]

    before = addresses()
    assert len(set(before)) == 1 + 3 * len(sizes(LIMIT))
    for n in range(100):
        session.run(images[: 1 + n % LIMIT])
    assert addresses() == before


def test_the_model_writes_into_the_bound_outputs(session, images):
    """The bound buffer itself holds the last answer: nothing was allocated and bound anew behind our back."""
    logits, _ = session.run(images[:2])
    bucket = session._buckets[1]
    np.testing.assert_array_equal(bucket._outputs[0].numpy(), logits)
    assert [value.data_ptr() for value in bucket._binding.get_outputs()] == [v.data_ptr() for v in bucket._outputs]


def test_many_threads_get_their_own_rows(session, plain, images):
    """Sixteen threads at once: each gets the rows of its own images."""
    expected = plain.run(images)[0]
    largest = np.abs(expected).max()

    def ask(first: int) -> float:
        rows = images[first : first + 1 + first % 7]
        return float(np.abs(session.run(rows)[0] - expected[first : first + len(rows)]).max())

    with ThreadPoolExecutor(16) as threads:
        assert max(threads.map(ask, [n % 30 for n in range(200)])) < 1e-5 * largest


def test_runs_on_cuda_take_turns(seeded, images, monkeypatch):
    """A run holds the lock of all CUDA runs, and so does the one that captures; cuDNN's search before it does not."""
    made = DeviceSession(seeded.onnx, seeded.manifest, 2)
    held = []
    for bucket in made._buckets:
        bucket._on_cuda = True  # stands for a device; its outputs are then not copied once more
        run = bucket._session.run_with_iobinding
        monkeypatch.setattr(
            bucket, "_session", SimpleNamespace(
                run_with_iobinding=lambda binding, options, run=run: (held.append(ON_CUDA.locked()), run(binding, options))
            ),
        )  # fmt: skip
    made.warm()
    assert held == ([False] + [True] * cuda_session._WARM_RUNS) * 2
    with ON_CUDA:
        waiting = threading.Thread(target=made.run, args=(images[:1],))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
    waiting.join(20)
    assert not waiting.is_alive()
    made.close()


def test_all_runs_are_on_the_driver(session, images, monkeypatch):
    """Whoever asks, the model runs on the one thread that captured its graphs; that thread itself does not wait."""
    seen = set()
    run = cuda_session._Bucket.run

    def spy(bucket, staging, count):
        seen.add(threading.get_ident())
        return run(bucket, staging, count)

    monkeypatch.setattr(cuda_session._Bucket, "run", spy)
    session.run(images[:1])
    session.driver.submit(session.run_images, list(images[:3])).result(timeout=120)
    session.warm()
    assert seen == {session._thread}
    assert session.callers == 1


@pytest.mark.parametrize("image", [np.zeros((5, 5, 3), np.uint8), np.zeros(3, np.uint8), np.float32])
def test_other_pixels_are_refused(session, images, image):
    """An image of another size or type is a ValueError, and never stretched over a row; the next run is right."""
    wrong = images[0].astype(np.float32) if image is np.float32 else image
    expected = session.run(images[:2])[0]
    with pytest.raises(ValueError, match="not uint8"):
        session.run_images([images[0], wrong])
    np.testing.assert_array_equal(session.run(images[:2])[0], expected)


def test_a_closed_session_ends_its_thread(seeded):
    """close() ends the driver, and a session that cannot be built leaves no thread behind."""
    made = DeviceSession(seeded.onnx, seeded.manifest, 1)
    thread = made._thread
    made.close()
    assert thread not in {t.ident for t in threading.enumerate()}
    before = threading.active_count()
    with pytest.raises(BundleError) as caught:
        DeviceSession(b"no model", seeded.manifest, 1)
    assert caught.value.reason == "MODEL_INVALID"
    with pytest.raises(BundleError) as caught:
        DeviceSession(seeded.onnx, replace(seeded.manifest, descriptor_length=7), 1)
    assert caught.value.reason == "MODEL_SHAPE"
    assert threading.active_count() == before


@pytest.mark.skipif(has_cuda_device(), reason="shows what happens without a CUDA device; this has one")
def test_cuda_is_never_the_cpu_in_disguise(seeded):
    """Asked for CUDA where there is none, the build fails; it does not go on on the CPU."""
    with pytest.raises((BundleError, RuntimeError)):
        DeviceSession(seeded.onnx, seeded.manifest, 1, provider_options(nhwc=False))


def test_the_options_say_what_was_asked_for():
    """Graphs on, exhaustive search, the layout, and a limit in bytes only where there is one."""
    options = provider_options(nhwc=True, memory_mb=512)
    assert options["gpu_mem_limit"] == str(512 << 20)
    assert (options["enable_cuda_graph"], options["prefer_nhwc"]) == ("1", "1")
    assert "gpu_mem_limit" not in provider_options(nhwc=False)
    assert provider_options(nhwc=False)["prefer_nhwc"] == "0"


@pytest.mark.gpu
@pytest.mark.skipif(not has_cuda_device(), reason="no CUDA device here")
@pytest.mark.parametrize("nhwc", [False, True])
def test_graphs_give_the_plain_answers(seeded, images, nhwc):
    """On a device, every size replayed from its graph, with new images each time, is the plain CUDA session's."""
    plain = Session(seeded.onnx, seeded.manifest, "cuda")
    made = DeviceSession(seeded.onnx, seeded.manifest, LIMIT, provider_options(nhwc))
    made.warm()
    assert made.provider == CUDA
    for count in [*range(1, LIMIT + 1)] * 2:
        chosen = images[count : 2 * count]
        for found, right in zip(made.run(chosen), plain.run(chosen), strict=True):
            np.testing.assert_allclose(found, right, atol=1e-2 * np.abs(right).max())
    made.close()


def test_on_the_cpu_it_says_so(session):
    """Without CUDA options the provider is the CPU's."""
    assert session.provider == CPU
