"""What the service answers over gRPC is what the bundle's own network and scikit-learn's own SVM compute offline."""

import pickle
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import pytest

from penult.bundle.preprocess import crop_encoded
from penult.service.inference.scoring import ClassScores
from penult.v1 import penult_pb2 as pb


@dataclass(frozen=True)
class Offline:
    """The answers for `photos`, computed without the service."""

    logits: np.ndarray
    descriptors: np.ndarray
    svm_scores: np.ndarray
    svm_labels: list[str]


@pytest.fixture(scope="module")
def offline(bundle, photos):
    """Run the bundle's ONNX file with onnxruntime and its svm.pkl with scikit-learn."""
    crops = np.stack([crop_encoded(photo, bundle.manifest.preprocess) for photo in photos])
    session = ort.InferenceSession(bundle.onnx, providers=["CPUExecutionProvider"])
    logits, descriptors = session.run(["logits", "descriptor"], {"pixels": crops})
    svm = pickle.loads(bundle.svm)
    labels = [bundle.manifest.classes[c] for c in svm.predict(descriptors)]
    return Offline(logits, descriptors, svm.decision_function(descriptors), labels)


def _softmax(scores: np.ndarray, temperature: float) -> np.ndarray:
    powers = np.exp((scores - scores.max(axis=1, keepdims=True)) / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def _table(response, bundle, field: str) -> np.ndarray:
    """Return a field of all classes, [photos, classes], in the bundle's order of classes."""
    return np.array(
        [
            [
                getattr({c.label: c for c in result.classification.classes}[name], field)
                for name in bundle.manifest.classes
            ]
            for result in response.results
        ]
    )


@pytest.mark.parametrize("scorer", ["dense", "svm"])
def test_classes_are_those_of_the_offline_computation(stub, photos, bundle, offline, request_of, scorer):
    """On a hundred photos all labels are identical, scores and probabilities within 1e-4, for either scorer."""
    number = {"dense": pb.SCORER_DENSE, "svm": pb.SCORER_SVM}[scorer]
    response = stub.Classify(request_of(*photos, scorer=number, top_k=10))
    scores = {"dense": offline.logits, "svm": offline.svm_scores}[scorer]
    assert response.scorer == number
    labels = [bundle.manifest.classes[c] for c in scores.argmax(axis=1)]
    assert [result.classification.label for result in response.results] == labels
    assert scorer == "dense" or labels == offline.svm_labels
    tolerance = 1e-4 * np.abs(scores).max()
    np.testing.assert_allclose(_table(response, bundle, "score"), scores, rtol=0, atol=tolerance)
    probabilities = _softmax(scores, bundle.manifest.temperatures[scorer])
    np.testing.assert_allclose(_table(response, bundle, "probability"), probabilities, rtol=0, atol=1e-4)


def test_the_default_scorer_is_the_bundles(stub, photos, bundle, request_of):
    """Leaving the scorer unset answers as the manifest's default, and says which that is."""
    number = {"dense": pb.SCORER_DENSE, "svm": pb.SCORER_SVM}[bundle.manifest.default_scorer]
    unset = stub.Classify(request_of(*photos[:10]))
    assert unset.scorer == number
    chosen = stub.Classify(request_of(*photos[:10], scorer=number))
    found, expected = ([r.classification.score for r in answer.results] for answer in (unset, chosen))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_descriptors_are_those_of_the_network(stub, photos, bundle, offline):
    """Describe returns the layer before last, within 1e-4 of the largest, with the model's fingerprint."""
    response = stub.Describe(pb.DescribeRequest(images=[pb.Image(encoded=photo) for photo in photos]))
    found = np.array([result.descriptor_vector.values for result in response.results])
    np.testing.assert_allclose(found, offline.descriptors, rtol=0, atol=1e-4 * np.abs(offline.descriptors).max())
    assert {result.descriptor_vector.fingerprint for result in response.results} == {bundle.manifest.fingerprint}


def test_descriptors_come_with_classes_when_asked_for(stub, photos, offline, request_of, bundle):
    """include_descriptor adds the descriptor of the same photo; without it there is none."""
    response = stub.Classify(request_of(*photos[:20], include_descriptor=True))
    found = np.array([result.classification.descriptor_vector.values for result in response.results])
    np.testing.assert_allclose(found, offline.descriptors[:20], atol=1e-4 * np.abs(offline.descriptors).max())
    assert response.results[0].classification.descriptor_vector.fingerprint == bundle.manifest.fingerprint
    plain = stub.Classify(request_of(*photos[:20]))
    assert not any(result.classification.HasField("descriptor_vector") for result in plain.results)


def test_scoring_descriptors_equals_classifying_photos(stub, photos, request_of):
    """Score on Describe's descriptors gives the classes, scores and probabilities of Classify with the SVM."""
    described = stub.Describe(pb.DescribeRequest(images=[pb.Image(encoded=photo) for photo in photos]))
    descriptors = [result.descriptor_vector for result in described.results]
    scored = stub.Score(pb.ScoreRequest(descriptors=descriptors, top_k=3))
    classified = stub.Classify(request_of(*photos, scorer=pb.SCORER_SVM, top_k=3))
    for one, other in zip(scored.results, classified.results, strict=True):
        for a, b in zip(one.classification.classes, other.classification.classes, strict=True):
            assert a.label == b.label
            assert (a.score, a.probability) == pytest.approx((b.score, b.probability), abs=1e-4)


@pytest.mark.parametrize(("top_k", "listed"), [(0, 5), (1, 1), (3, 3), (10, 10), (11, 10), (2**32 - 1, 10)])
def test_top_k_lists_the_best_classes(stub, photos, request_of, top_k, listed):
    """top_k classes are listed, best first, the first repeating the answer; 0 means 5, too many means all."""
    for result in stub.Classify(request_of(*photos[:5], top_k=top_k)).results:
        found = result.classification
        assert len(found.classes) == listed
        assert [c.score for c in found.classes] == sorted((c.score for c in found.classes), reverse=True)
        best = found.classes[0]
        assert (best.label, best.score, best.probability) == (found.label, found.score, found.probability)
        assert listed < 10 or sum(c.probability for c in found.classes) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("method", ["Classify", "Describe", "Score"])
def test_answers_name_the_model_and_their_times(stub, photos, bundle, method):
    """Every answer says which model, version and fingerprint gave it, and where the time went."""
    image = pb.Image(encoded=photos[0])
    response = {
        "Classify": lambda: stub.Classify(pb.ClassifyRequest(images=[image])),
        "Describe": lambda: stub.Describe(pb.DescribeRequest(images=[image])),
        "Score": lambda: stub.Score(pb.ScoreRequest(descriptors=[pb.Descriptor(values=[0.5] * 128)])),
    }[method]()
    assert (response.model.name, response.model.version) == ("digits", 1)
    assert response.model.fingerprint == bundle.manifest.fingerprint
    times = response.timings
    assert 0 < times.total_ms < 10_000
    for part in (times.decode_ms, times.queue_ms, times.inference_ms, times.score_ms):
        assert 0 <= part <= times.total_ms
    assert (times.decode_ms > 0 and times.inference_ms > 0) == (method != "Score")


def test_raw_pixels_are_answered_as_the_file(stub, photos, bundle, request_of):
    """The pixels that GetModel's preprocessing would make, sent raw, give the answer of the file."""
    crop = crop_encoded(photos[0], bundle.manifest.preprocess)
    side = bundle.manifest.preprocess.crop
    raw = pb.Image(raw=pb.RawImage(height=side, width=side, rgb=crop.tobytes()))
    response = stub.Classify(pb.ClassifyRequest(images=[raw, pb.Image(encoded=photos[0])]))
    assert len({result.classification.label for result in response.results}) == 1


def test_ties_go_to_the_first_class():
    """Equal scores are ranked in the order of the classes, as argmax does, with equal probabilities."""
    classes = [str(n) for n in range(200)]
    scores = np.array([[n % 3 for n in range(200)]], dtype=np.float32)
    ((*ranked,),) = ClassScores.of(scores, classes, 1.0).ranked(200)
    assert [scored.label for scored in ranked] == sorted(classes, key=lambda name: (-(int(name) % 3), int(name)))
    assert ranked[0].probability == ranked[1].probability > ranked[-1].probability


@pytest.mark.parametrize("classes", [5, 99, 2000])
def test_the_best_of_many_classes_are_those_of_a_whole_sort(classes: int):
    """However many classes there are and however many scores tie, the best come in the order of a stable sort."""
    scores = np.random.default_rng(0).integers(0, 30, (40, classes)).astype(np.float32)
    names = [str(place) for place in range(classes)]
    for top_k in (1, 3, classes + 1):
        found = [[scored.label for scored in row] for row in ClassScores.of(scores, names, 1.0).ranked(top_k)]
        assert found == [[names[place] for place in order[:top_k]] for order in np.argsort(-scores, 1, kind="stable")]
