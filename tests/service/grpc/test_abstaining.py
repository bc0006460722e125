"""Withheld answers over every protocol: reasons, other operating points, metrics, and models that never abstain."""

from dataclasses import replace

import grpc
import httpx
import numpy as np
import pytest

from penult import cli
from penult.bundle.operating_points import OperatingPoint
from penult.bundle.writer import publish
from penult.client import Client, RequestFailed

LIMIT = 0.9
POINTS = (
    OperatingPoint("svm", 0.05, (LIMIT,), 100, 60, 1, is_default=True),
    OperatingPoint("svm", 0.01, (None,) + (0.0,) * 9, 100, 60, 0),
    OperatingPoint("dense", 0.1, (0.0,), 100, 90, 1),
)


@pytest.fixture(scope="module")
def running(bundle, models, tmp_path_factory, start_server):
    """A server of digits with operating points."""
    folder, version = tmp_path_factory.mktemp("points"), models / "digits" / "1"
    files = {name: (version / name).read_bytes() for name in bundle.manifest.files}
    publish(folder / "digits", replace(bundle.manifest, operating_points=POINTS, default_scorer="svm"), files)
    return start_server(folder, "--http")


@pytest.fixture(scope="module")
def images(photo_paths):
    """Photos of digits, and one of noise."""
    return [*photo_paths[:40], np.random.default_rng(5).integers(0, 256, (32, 32, 3), dtype=np.uint8)]


def reason_of(result, limit: float) -> str:
    """Why an answer must be withheld."""
    return "novel" if result.is_novel else "unsure" if result.probability < limit else ""


def test_answers_below_the_threshold_are_withheld(running, images, samples):
    """The default point of the scorer decides, novelty comes first, labels stay, and metrics count each reason."""
    with Client(running.target) as client:
        before = samples(running.http)
        answer = client.classify(images, scorer="svm")
        after = samples(running.http)
    reasons = [reason_of(result, LIMIT) for result in answer.results]
    assert answer.max_error == 0.05
    assert [result.abstain_reason for result in answer.results] == reasons
    assert [result.abstained for result in answer.results] == [reason != "" for reason in reasons]
    assert reasons[-1] == "novel"
    assert all(result.label for result in answer.results)
    for reason in ("unsure", "novel"):
        key = "penult_abstained_total", ("model", "digits"), ("reason", reason), ("version", "1")
        assert after[key] - before[key] == reasons.count(reason)


def test_another_operating_point_may_be_asked_for(running, images):
    """At 1 % the class 0 is never answered; a share that is not certified names those that are."""
    with Client(running.target) as client:
        strict = client.classify(images, scorer="svm", max_error=0.01)
        for result in strict.results:
            assert result.abstained == (result.is_novel or result.label == "0")
        with pytest.raises(RequestFailed, match="ask for 5%, 1%") as caught:
            client.classify(images[:1], scorer="svm", max_error=0.02)
        assert (caught.value.code, caught.value.reason) == ("INVALID_ARGUMENT", "MAX_ERROR")
        points = client.get_model().operating_points
    assert [round(point.max_error, 6) for point in points] == [0.05, 0.01, 0.1]
    assert points[1].thresholds[0] > 1


def test_a_scorer_without_a_default_point_never_abstains(running, images):
    """The dense head abstains only if its point is asked for."""
    with Client(running.target) as client:
        plain = client.classify(images, scorer="dense")
        asked = client.classify(images, scorer="dense", max_error=0.1)
    assert plain.max_error is None
    assert not any(result.abstained for result in plain.results)
    assert [result.abstained for result in asked.results] == [result.is_novel for result in asked.results]


def test_descriptors_are_scored_with_the_same_threshold(running, images):
    """Score withholds what Classify withholds, though it does not return the novelty."""
    with Client(running.target) as client:
        named, described = client.classify(images, scorer="svm"), client.describe(images)
        scored = client.score(np.stack(described.results))
    assert scored.max_error == 0.05
    assert [r.abstain_reason for r in scored.results] == [r.abstain_reason for r in named.results]


def test_the_open_inference_protocol_has_an_output_for_it(running, crops):
    """`abstained` follows the parameter max_error over HTTP; a wrong one is refused."""

    def ask(**parameters: object) -> httpx.Response:
        body = {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": list(crops[:20].shape), "data": crops[:20].ravel().tolist()}],
                "parameters": {"scorer": "svm", **parameters}, "outputs": [{"name": "labels"}, {"name": "abstained"}]}  # fmt: skip
        return httpx.post(f"{running.http}/v2/models/digits/infer", json=body)

    with Client(running.target) as client:
        from penult.client import Crop

        images = [Crop(crop) for crop in crops[:20]]
        expected = {share: client.classify(images, scorer="svm", max_error=share) for share in (None, 0.01)}
    for share, answer in expected.items():
        outputs = ask(**({} if share is None else {"max_error": share})).json()["outputs"]
        assert outputs[1]["data"] == [result.abstained for result in answer.results]
    assert ask(max_error=0.02).status_code == 400
    assert ask(max_error="much").status_code == 400
    metadata = httpx.get(f"{running.http}/v2/models/digits").json()
    assert metadata["outputs"][-1] == {"name": "abstained", "datatype": "BOOL", "shape": [-1]}


def test_a_photo_tried_counts_for_the_scorer_that_answers(running, images, samples):
    """The status page shows both scorers; withheld answers and confidence are counted for the default one, the SVM."""
    header = {"content-type": "application/octet-stream"}
    before = samples(running.http)
    told = [httpx.post(f"{running.http}/try", content=path.read_bytes(), headers=header).json() for path in images[:20]]
    after = samples(running.http)
    with Client(running.target) as client:
        for scorer in ("dense", "svm"):
            answer = client.classify(images[:20], scorer=scorer)
            assert [each["scorers"][scorer][0]["label"] for each in told] == [r.label for r in answer.results]
            shown = [each["scorers"][scorer][0]["probability"] for each in told]
            assert shown == pytest.approx([r.probability for r in answer.results], rel=1e-4)
            assert [each["abstained"].get(scorer, "") for each in told] == [r.abstain_reason for r in answer.results]
    withheld = [each["abstained"]["svm"] for each in told]
    assert any(withheld)
    rise = {key: after[key] - before.get(key, 0) for key in after}
    for reason in ("unsure", "novel"):
        key = "penult_abstained_total", ("model", "digits"), ("reason", reason), ("version", "1")
        assert rise[key] == withheld.count(reason)
    counted = {key[2][1]: value for key, value in rise.items() if key[0] == "penult_confidence_count"}
    assert counted == {"dense": 0, "svm": 20}


def test_a_model_without_points_refuses_the_parameter_and_never_abstains(server, photos, failure, request_of, stub):
    """`max_error` is INVALID_ARGUMENT without operating points; without it nothing is withheld."""
    error = failure(lambda: stub.Classify(request_of(photos[0], max_error=0.05)))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "penult calibrate" in error.details()
    response = stub.Classify(request_of(photos[0]))
    assert not response.HasField("max_error")
    assert not response.results[0].classification.abstained


def test_the_command_line_says_unsure(running, images, capsys):
    """`penult classify` marks withheld answers, and --json has the fields."""
    import json

    arguments = ["classify", "--target", running.target, "--scorer", "svm", *map(str, images[:-1])]
    with Client(running.target) as client:
        withheld = [r.abstain_reason for r in client.classify(images[:-1], scorer="svm").results]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.count("(unsure)") == withheld.count("unsure")
    assert "at most 5% are wrong" in shown
    assert cli.main([*arguments, "--json", "--max-error", "5%"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [result["abstain_reason"] for result in results] == withheld
    assert {result["max_error"] for result in results} == {0.05}
