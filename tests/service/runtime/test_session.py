"""One onnxruntime session: shapes checked at load, thread-safe, and never quietly on another device than asked for."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest

from penult.bundle.errors import BundleError
from penult.service.errors import ConfigError
from penult.service.runtime import session as module
from penult.service.runtime.session import CPU, CUDA, Session, has_cuda_device

without_cuda = pytest.mark.skipif(has_cuda_device(), reason="shows what happens without a CUDA device; this has one")


@pytest.fixture(scope="module")
def session(bundle):
    """The digits model on the CPU."""
    return Session(bundle.onnx, bundle.manifest, "cpu")


def test_the_outputs_are_those_of_onnxruntime(session, bundle):
    """run() returns logits, then descriptors, equal to a plain onnxruntime session's by name."""
    logits, descriptor = session.run(bundle.goldens.crops)
    plain = ort.InferenceSession(bundle.onnx, providers=[CPU])
    expected = plain.run(["logits", "descriptor"], {"pixels": bundle.goldens.crops})
    assert logits.shape == (len(bundle.goldens.images), 10)
    assert descriptor.shape == (len(bundle.goldens.images), bundle.manifest.descriptor_length)
    np.testing.assert_allclose(logits, expected[0], atol=1e-4)
    np.testing.assert_allclose(descriptor, expected[1], atol=1e-4)


def test_several_threads_may_run_it_at_once(session, bundle):
    """Concurrent runs of different photos each return their own rows."""
    expected = session.run(bundle.goldens.crops)[0]
    rows = [n % len(expected) for n in range(64)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda row: session.run(bundle.goldens.crops[row : row + 1])[0][0], rows))
    np.testing.assert_allclose(found, expected[rows], atol=1e-4)


def test_cpu_is_what_it_says(session):
    """--device cpu reports the CPU provider."""
    assert session.provider == CPU


@without_cuda
def test_auto_falls_back_to_the_cpu(bundle):
    """--device auto serves on the CPU where there is no CUDA device, and says so."""
    assert Session(bundle.onnx, bundle.manifest, "auto").provider == CPU


@without_cuda
def test_cuda_without_a_device_is_refused(bundle):
    """--device cuda never becomes a CPU quietly: it is an error that says what to do."""
    with pytest.raises(ConfigError, match=r"--device cuda: .*nvidia-smi.*--device cpu"):
        Session(bundle.onnx, bundle.manifest, "cuda")


def test_auto_says_that_cuda_could_not_load_it(seeded, monkeypatch, caplog, capsys):
    """Where CUDA is there and cannot load the model, auto goes on on the CPU with a warning, and prints nothing."""
    monkeypatch.setattr(module, "_providers", lambda device, memory_mb: [("NoSuchProvider", {}), CPU])
    opened = module.open_model

    def fail_first(onnx, providers, threads):
        if len(providers) > 1:
            raise BundleError("MODEL_INVALID", "out of memory")
        return opened(onnx, providers, threads)

    monkeypatch.setattr(module, "open_model", fail_first)
    assert Session(seeded.onnx, seeded.manifest, "auto").provider == CPU
    assert "runs on the CPU: out of memory" in caplog.text
    with pytest.raises(BundleError, match="out of memory"):
        Session(seeded.onnx, seeded.manifest, "cuda")
    assert capsys.readouterr().out == ""


def test_a_failing_run_does_not_change_the_device(seeded):
    """onnxruntime's own fallback, which would go on on the CPU in mid-run, is off."""
    assert Session(seeded.onnx, seeded.manifest, "cpu")._session._enable_fallback is False


def test_a_memory_limit_is_in_bytes_for_the_provider():
    """MiB become bytes, the arena then grows by what is asked for; no limit, no option."""
    assert module.memory_options(0) == {}
    assert module.memory_options(3) == {"gpu_mem_limit": "3145728", "arena_extend_strategy": "kSameAsRequested"}


@pytest.mark.gpu
@pytest.mark.skipif(not has_cuda_device(), reason="no CUDA device here")
def test_cuda_with_a_device_is_used(bundle):
    """--device cuda runs on the CUDA provider and gives the goldens' classes."""
    session = Session(bundle.onnx, bundle.manifest, "cuda")
    assert session.provider == CUDA
    logits, _ = session.run(bundle.goldens.crops)
    assert logits.argmax(axis=1).tolist() == bundle.goldens.logits.argmax(axis=1).tolist()


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x0a" + bytes(64), None])
def test_bytes_that_are_no_model_are_refused(bundle, data):
    """Empty, foreign or cut-off bytes give BundleError, whatever onnxruntime raises on them."""
    onnx = bundle.onnx[: len(bundle.onnx) // 2] if data is None else data
    with pytest.raises(BundleError) as caught:
        Session(onnx, bundle.manifest, "cpu")
    assert caught.value.reason == "MODEL_INVALID"
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "change",
    [
        {"descriptor_length": 64},
        {"classes": ("one", "two")},
        {"descriptor_name": "features"},
        {"input_name": "images"},
        {"logits_name": "descriptor", "descriptor_name": "logits"},
    ],
)
def test_a_model_of_another_shape_than_promised_is_refused(bundle, change):
    """A graph that contradicts the manifest gives BundleError at load, not wrong answers later."""
    with pytest.raises(BundleError) as caught:
        Session(bundle.onnx, replace(bundle.manifest, **change), "cpu")
    assert caught.value.reason == "MODEL_SHAPE"


def test_more_logits_than_classes_must_be_stated(bundle):
    """A network of ten logits may serve an SVM of two classes where the manifest states its logits, and only then."""
    stated = replace(bundle.manifest, classes=("one", "two"), stated_scorers=("svm",), stated_logits_length=10)
    logits, _ = Session(bundle.onnx, stated, "cpu").run(bundle.goldens.crops)
    assert logits.shape[1] == 10
    with pytest.raises(BundleError) as caught:
        Session(bundle.onnx, replace(stated, stated_logits_length=9), "cpu")
    assert caught.value.reason == "MODEL_SHAPE"


def test_another_crop_than_promised_is_refused(bundle):
    """A manifest whose crop is not the graph's input size gives BundleError."""
    spec = replace(bundle.manifest.preprocess, resize=64, crop=64)
    with pytest.raises(BundleError) as caught:
        Session(bundle.onnx, replace(bundle.manifest, preprocess=spec), "cpu")
    assert caught.value.reason == "MODEL_SHAPE"
