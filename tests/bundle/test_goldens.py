"""Golden photos: a good bundle replays, a changed one is refused for what changed."""

import pickle
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from tests.attacks.pngs import chunk

from penult.bundle.errors import BundleError
from penult.bundle.goldens import Goldens, choose, replay
from penult.bundle.preprocess import Pixels
from penult.bundle.reader import Bundle, read_bundle
from penult.bundle.scores import Floats, as_columns
from penult.export.onnx.runtime import ExportedModel

Run = Callable[[Pixels], tuple[Floats, Floats]]


@pytest.fixture(scope="module")
def bundle(models) -> Bundle:
    """The trained bundle."""
    return read_bundle(models / "digits")


@pytest.fixture(scope="module")
def run(bundle: Bundle) -> Run:
    """Its network, run by onnxruntime."""
    return ExportedModel(bundle.onnx, bundle.manifest).run


@pytest.fixture(scope="module")
def run_svm(bundle: Bundle) -> Callable[[Floats], Floats]:
    """Its SVM."""
    pipeline = pickle.loads(bundle.svm)
    return lambda descriptors: as_columns(pipeline.decision_function(descriptors))


def _refused(goldens: Goldens, bundle: Bundle, run: Run, run_svm: Callable | None, tolerance: float = 1e-4) -> str:
    with pytest.raises(BundleError) as caught:
        replay(goldens, bundle.manifest, run, run_svm, tolerance)
    assert "\n" not in caught.value.message
    return caught.value.reason


def _with_weights(bundle: Bundle, change: Callable[[np.ndarray], np.ndarray]) -> Run:
    """Return the network with the largest of its stored arrays changed."""
    model = onnx.load_from_string(bundle.onnx)
    largest = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    values = change(onnx.numpy_helper.to_array(largest).copy())
    largest.CopyFrom(onnx.numpy_helper.from_array(values, largest.name))
    return ExportedModel(model.SerializeToString(), bundle.manifest).run


def test_a_good_bundle_replays(bundle: Bundle, run: Run, run_svm: Callable):
    """The bundle gives its own answers, on real photos of several classes."""
    assert replay(bundle.goldens, bundle.manifest, run, run_svm) < 1e-4
    assert replay(bundle.goldens, bundle.manifest, run, None) < 1e-4
    assert len(set(bundle.goldens.logits.argmax(1).tolist())) == 8


def test_bytes_round_trip(bundle: Bundle):
    """Goldens read back are the goldens written: photos byte for byte, arrays bit for bit."""
    again = Goldens.from_bytes(bundle.goldens.to_bytes())
    assert again.images == bundle.goldens.images
    for name in ("crops", "logits", "descriptor", "svm_scores"):
        before, after = getattr(bundle.goldens, name), getattr(again, name)
        assert before.dtype == after.dtype
        assert np.array_equal(before, after)


@pytest.mark.parametrize("change", [lambda w: w * 1.001, lambda w: -w, np.zeros_like, lambda w: w[::-1]])
def test_changed_weights_are_refused(bundle: Bundle, run_svm: Callable, change: Callable):
    """A network whose weights differ by a thousandth, or altogether, does not replay."""
    assert _refused(bundle.goldens, bundle, _with_weights(bundle, change), run_svm) == "GOLDEN_VALUES"


def test_another_descriptor_is_refused(bundle: Bundle, run: Run):
    """The descriptor is compared for itself: right logits do not make up for it."""
    other = replace(bundle.goldens, descriptor=bundle.goldens.descriptor * np.float32(1.001))
    assert _refused(other, bundle, run, None) == "GOLDEN_VALUES"


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_answers_that_are_no_numbers_are_refused(bundle: Bundle, run_svm: Callable, odd: float):
    """A network that gives NaN or infinity does not replay, even if the same was recorded."""
    run = _with_weights(bundle, lambda weights: np.full_like(weights, odd))
    assert _refused(bundle.goldens, bundle, run, run_svm) == "GOLDEN_VALUES"
    recorded = replace(bundle.goldens, logits=np.full_like(bundle.goldens.logits, odd))
    assert _refused(recorded, bundle, run, run_svm) == "GOLDEN_VALUES"


def test_recorded_answers_that_are_no_numbers_are_refused(bundle: Bundle, run: Run, run_svm: Callable):
    """NaN among the expected values cannot make every answer right."""
    logits = bundle.goldens.logits.copy()
    logits[0, 0] = np.nan
    assert _refused(replace(bundle.goldens, logits=logits), bundle, run, run_svm).startswith("GOLDEN_")


def test_other_pixels_are_refused(bundle: Bundle, run: Run, run_svm: Callable):
    """A decoder that differs by one grey level passes, by two it does not: up or down, and also across 0 and 255."""
    crops = bundle.goldens.crops.astype(int)
    for shift in (-2, 2):
        other = replace(bundle.goldens, crops=np.clip(crops + shift, 0, 255).astype(np.uint8))
        assert _refused(other, bundle, run, run_svm) == "GOLDEN_PIXELS"
    close = replace(bundle.goldens, crops=np.clip(crops + 1, 0, 255).astype(np.uint8))
    assert replay(close, bundle.manifest, run, run_svm) < 1e-4
    wrapped = replace(bundle.goldens, crops=np.where(crops == 0, 255, crops).astype(np.uint8))
    assert _refused(wrapped, bundle, run, run_svm) == "GOLDEN_PIXELS"


def test_a_photo_that_earlier_versions_turned_still_replays(bundle: Bundle, run: Run, run_svm: Callable):
    """A golden photo that text turned when the bundle was made keeps its recorded pixels; no other photo may differ."""
    crops = bundle.goldens.crops.copy()
    crops[0] = np.rot90(crops[0])
    logits, descriptor = run(crops)
    recorded = replace(
        bundle.goldens, crops=crops, logits=logits, descriptor=descriptor, svm_scores=run_svm(descriptor)
    )
    assert _refused(recorded, bundle, run, run_svm) == "GOLDEN_PIXELS"
    first, *others = bundle.goldens.images
    text = chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')
    turned = replace(recorded, images=(first[:33] + text + first[33:], *others))
    assert replay(turned, bundle.manifest, run, run_svm) < 1e-4
    assert _refused(replace(turned, logits=bundle.goldens.logits), bundle, run, run_svm).startswith("GOLDEN_")


def test_another_crop_size_is_refused(bundle: Bundle, run: Run, run_svm: Callable):
    """Crops of another size than recorded are refused before the network is asked."""
    other = replace(bundle.goldens, crops=bundle.goldens.crops[:, :-1])
    assert _refused(other, bundle, run, run_svm) == "GOLDEN_PIXELS"


def test_golden_photos_that_cannot_be_decoded_here_are_refused(bundle: Bundle, run: Run, run_svm: Callable):
    """A photo that this decoder refuses speaks against the bundle, so the error is the bundle's."""
    first, *others = bundle.goldens.images
    broken = replace(bundle.goldens, images=(first[: len(first) // 2], *others))
    assert _refused(broken, bundle, run, run_svm).startswith("GOLDEN_")


def test_other_labels_are_refused(bundle: Bundle, run: Run, run_svm: Callable):
    """However far values may be off, the classes named must be the recorded ones, for either scorer."""
    for name in ("logits", "svm_scores"):
        swapped = replace(bundle.goldens, **{name: getattr(bundle.goldens, name)[:, ::-1]})
        assert _refused(swapped, bundle, run, run_svm, tolerance=1e9) == "GOLDEN_LABELS"
        assert _refused(swapped, bundle, run, run_svm) == "GOLDEN_VALUES"


def test_classes_that_tie_may_be_named_either_way(bundle: Bundle, run: Run, run_svm: Callable):
    """Two classes that differ by less than float32 holds are one to the replay; a millionth more, and they are two."""
    logits, descriptor = run(bundle.goldens.crops)
    first, second = np.argsort(logits[0])[::-1][:2]
    top = float(np.abs(logits).max())

    def tied(by: float) -> tuple[Run, Goldens]:
        expected, here = logits.copy(), logits.copy()
        expected[0, second] = expected[0, first] - by * top
        here[0, second] = here[0, first] + 1e-7 * top
        return (lambda _: (here, descriptor)), replace(bundle.goldens, logits=expected)

    model, goldens = tied(5e-7)
    assert replay(goldens, bundle.manifest, model, run_svm) < 1e-4
    model, goldens = tied(5e-5)
    assert _refused(goldens, bundle, model, run_svm) == "GOLDEN_LABELS"


def test_the_dense_heads_labels_count_only_where_it_is_a_scorer(bundle: Bundle, run: Run, run_svm: Callable):
    """Where the SVM names other classes, a near tie among the logits is no fault; another SVM label still is."""
    alone = replace(bundle, manifest=replace(bundle.manifest, stated_scorers=("svm",), stated_logits_length=10))
    swapped = {name: replace(bundle.goldens, **{name: getattr(bundle.goldens, name)[:, ::-1]})
               for name in ("logits", "svm_scores")}  # fmt: skip
    assert replay(swapped["logits"], alone.manifest, run, run_svm, tolerance=1e9) > 1e-4
    assert _refused(swapped["logits"], alone, run, run_svm) == "GOLDEN_VALUES"
    assert _refused(swapped["svm_scores"], alone, run, run_svm, tolerance=1e9) == "GOLDEN_LABELS"


def test_another_svm_is_refused(bundle: Bundle, run: Run, run_svm: Callable):
    """An SVM that scores otherwise, or where none was recorded, does not replay."""
    assert _refused(bundle.goldens, bundle, run, lambda d: run_svm(d) * np.float32(1.001)) == "GOLDEN_VALUES"
    # What the network may vary by is more than what computing the SVM in another way may.
    assert _refused(bundle.goldens, bundle, run, lambda d: run_svm(d) * np.float32(1.00003)) == "GOLDEN_VALUES"
    without = replace(bundle.goldens, svm_scores=np.zeros((0, 0), np.float32))
    assert _refused(without, bundle, run, run_svm) == "GOLDEN_VALUES"


@pytest.mark.parametrize("data", [b"", b"no zip", b"PK\x03\x04" + bytes(50), np.zeros(3).tobytes()])
def test_what_is_no_golden_file_is_refused(data: bytes):
    """Bytes that are no archive of arrays are refused."""
    with pytest.raises(BundleError) as caught:
        Goldens.from_bytes(data)
    assert caught.value.reason == "GOLDEN_INVALID"


def test_damaged_goldens_are_refused(bundle: Bundle):
    """A cut golden file, and one without any photo, are refused."""
    data = bundle.goldens.to_bytes()
    for damaged, reason in (
        (data[: len(data) // 2], "GOLDEN_INVALID"),
        (replace(bundle.goldens, images=()).to_bytes(), "GOLDEN_EMPTY"),
    ):
        with pytest.raises(BundleError) as caught:
            Goldens.from_bytes(damaged)
        assert caught.value.reason == reason


def test_pickled_arrays_are_not_loaded(tmp_path):
    """An archive that would run code when unpickled is refused, and the code does not run."""
    import io

    class Evil:
        def __reduce__(self) -> tuple:
            return (tmp_path.joinpath("canary").touch, ())

    buffer = io.BytesIO()
    np.savez(buffer, image_lengths=np.array([Evil()], dtype=object))
    with pytest.raises(BundleError):
        Goldens.from_bytes(buffer.getvalue())
    assert not (tmp_path / "canary").exists()


def test_choose_spreads_over_the_classes():
    """Of three classes, six chosen photos are the two clearest of each, the clearest first."""
    rng = np.random.default_rng(0)
    labels = [0] * 50 + [1] * 5 + [2] * 2
    scores = rng.normal(0, 1, (57, 3)).astype(np.float32)
    margins = np.sort(scores, 1)[:, -1] - np.sort(scores, 1)[:, -2]
    chosen = choose(scores, labels, 6)
    assert sorted(labels[row] for row in chosen) == [0, 0, 1, 1, 2, 2]
    for label in range(3):
        rows = [row for row in range(57) if labels[row] == label]
        assert {row for row in chosen if labels[row] == label} == set(sorted(rows, key=lambda row: -margins[row])[:2])


def test_choose_takes_what_there_is():
    """With fewer photos than asked for, each is chosen once."""
    assert sorted(choose(np.eye(3, dtype=np.float32), [0, 1, 2], 8)) == [0, 1, 2]


def test_choose_takes_few_of_many_photos():
    """Of 10,000 validation photos eight are chosen."""
    scores = np.random.default_rng(0).normal(size=(10_000, 10)).astype(np.float32)
    assert len(set(choose(scores, [row % 10 for row in range(10_000)], 8))) == 8
