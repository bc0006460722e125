"""Feedback on a running server: who may send it, what it counts, what is kept, and what a restart leaves."""

import base64
import csv
import hashlib
import json
import stat
from collections import Counter
from dataclasses import replace
from pathlib import Path

import grpc
import httpx
import pytest

from penult import cli
from penult.bundle.reader import read_manifest
from penult.client import Client, ItemFailure, Truth
from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc

MODEL = (("model", "digits"), ("version", "1"))


@pytest.fixture(scope="module")
def own_photos(digits):
    """Test photos of the digits with their labels, four of each."""
    return [(path, digit) for digit in "0123456789" for path in sorted((digits / "test" / digit).iterdir())[:4]]


def outcomes(found: dict) -> dict[str, float]:
    """The counted verdicts of digits, by outcome, without zeros."""
    name = "penult_feedback_total"
    return {dict(key[1:])["outcome"]: value for key, value in found.items() if key[0] == name and value}


def test_the_counts_are_what_the_client_counts(models, start_server, samples, own_photos, tmp_path):
    """Verdicts by request, by image id and over HTTP are counted once each, the last one about an answer, on the disk."""
    folder = tmp_path / "feedback"
    server = start_server(models, "--http", "--feedback", str(folder))
    paths, labels = zip(*own_photos, strict=True)
    with Client(server.target) as client:
        answer = client.classify(paths, image_ids=[path.name for path in paths])
        truths = [answer.truth(place, label) for place, label in enumerate(labels)]
        judged = client.feedback(truths[:20])
        judged += client.feedback([Truth(label, image_id=path.name) for path, label in own_photos[20:]])
        expected = Counter(
            "right" if r.label == label else "wrong" for r, label in zip(answer.results, labels, strict=True)
        )
        assert Counter(each.outcome for each in judged) == expected
        assert {(each.model, each.version, each.is_repeated, each.is_photo_kept) for each in judged} == {
            ("digits", 1, False, False)
        }
        # The same again, and by the other name, counts nothing.
        assert all(each.is_repeated for each in client.feedback(truths))
        assert outcomes(samples(server.http)) == expected
        # A wrong verdict is taken back: both are counted, and the live accuracy has the last.
        place = next(n for n, (r, label) in enumerate(zip(answer.results, labels, strict=True)) if r.label == label)
        body = {"truths": [{"request_id": truths[place].request_id, "index": place, "verdict": "no_class"}]}
        told = httpx.post(f"{server.http}/feedback", json=body).raise_for_status().json()["results"]
        assert [(each["outcome"], each["is_repeated"]) for each in told] == [("wrong", False)]
    found = samples(server.http)
    expected["wrong"] += 1
    assert outcomes(found) == expected
    assert found["penult_feedback_replaced_total", MODEL[0], ("outcome", "right"), MODEL[1]] == 1
    right = expected["right"] - 1
    live, low, high = (found[f"penult_live_accuracy{end}", *MODEL] for end in ("", "_low", "_high"))
    assert (live, low < live < high) == (right / 40, True)
    cells = {key: value for key, value in found.items() if key[0] == "penult_feedback_confusion"}
    assert sum(cells.values()) == 40
    assert sum(value for key, value in cells.items() if dict(key[1:])["answered"] == dict(key[1:])["label"]) == right
    file = folder / "feedback.jsonl"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(file.read_text().splitlines()) == 41
    told = httpx.get(f"{server.http}/status.json").json()["models"][0]["live"]
    assert (told["accuracy"], told["answers"]) == (right / 40, 40)


def test_what_cannot_be_is_refused_one_by_one(models, start_server, own_photos):
    """A label the model lacks, an answer the server never gave, a finding that says nothing: each has its own error."""
    server = start_server(models, "--http")
    with Client(server.target) as client:
        answer = client.classify([own_photos[0][0], b"broken"], image_ids=["one", ""])
        good = answer.truth(0, "0")
        cases = [
            (answer.truth(0, "ten"), "INVALID_ARGUMENT", "LABEL_UNKNOWN"),
            (Truth("0", request_id="f" * 16), "NOT_FOUND", "ANSWER_UNKNOWN"),
            (Truth("0", request_id=good.request_id, index=1), "NOT_FOUND", "ANSWER_UNKNOWN"),
            (Truth("0", image_id="two"), "NOT_FOUND", "ANSWER_UNKNOWN"),
            (Truth("0"), "INVALID_ARGUMENT", "ANSWER_UNNAMED"),
            (Truth("0", image_id="x" * 300), "INVALID_ARGUMENT", "ID"),
            (Truth("0", image_id="two", model="digits", version=9, answered="0"), "NOT_FOUND", "VERSION_UNKNOWN"),
            (Truth("0", image_id="two", model="digits", answered="ten"), "INVALID_ARGUMENT", "LABEL_UNKNOWN"),
        ]
        *failed, last = client.feedback([*(truth for truth, _, _ in cases), good])
        assert [(each.code, each.reason) for each in failed] == [(code, reason) for _, code, reason in cases]
        assert not isinstance(last, ItemFailure)
        # What the client was answered stands in for what the server does not know.
        (claimed,) = client.feedback(
            [Truth(image_id="two", verdict="unknown", model="digits", version=1, answered="3")]
        )
        assert (claimed.outcome, claimed.answered) == ("unknown", "3")
    for body in (b"", b"[]", b'{"truths": []}', b'{"truths": [3]}', b'{"truths": [{"index": -1}]}', b"[" * 9999):
        told = httpx.post(f"{server.http}/feedback", content=body, headers={"content-type": "application/json"})
        assert told.status_code == 400, body
    for headers in (
        {"origin": "http://evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"content-type": "text/plain"},
    ):
        refused = httpx.post(f"{server.http}/feedback", content=b"{}", headers=headers)
        assert refused.status_code in (403, 415)


def test_every_way_of_asking_can_be_judged(models, start_server, samples, own_photos):
    """Streams, the Open Inference Protocol and the page's photo answer with an id that feedback takes."""
    server = start_server(models, "--http")
    photo = own_photos[0][0].read_bytes()
    tried = httpx.post(
        f"{server.http}/try?model=digits", content=photo, headers={"content-type": "application/octet-stream"}
    ).json()
    assert tried["request_id"]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(photo).decode()]}
    inferred = httpx.post(f"{server.http}/v2/models/digits/infer", json={"inputs": [tensor]})
    ids = [tried["request_id"], inferred.headers["penult-request-id"]]
    with grpc.insecure_channel(server.target) as channel:
        request = pb.ClassifyRequest(images=[pb.Image(encoded=photo)])
        stub = penult_pb2_grpc.PenultServiceStub(channel)
        responses = list(stub.StreamClassify(iter([request, request])))
        response, call = stub.Classify.with_call(request)
    assert dict(call.trailing_metadata())["penult-request-id"] == response.request_id
    ids += [each.request_id for each in (*responses, response)]
    assert len(set(ids)) == 5
    with Client(server.target) as client:
        assert [each.outcome for each in client.feedback([Truth(verdict="right", request_id=key) for key in ids])] == [
            "right"
        ] * 5
    assert outcomes(samples(server.http)) == {"right": 5}


def test_corrected_photos_are_read_by_the_commands_that_learn(
    copy_model, start_server, digits, tiny_weights, tmp_path, capsys
):
    """svm, train, label and its replay take the folder of corrected photos, with the labels that people gave."""
    model = copy_model(tmp_path / "models")
    server = start_server(model.parent, "--feedback", str(tmp_path / "feedback"), "--feedback-photos-mb", "8")
    known = {path: digit for digit in "012" for path in sorted((digits / "test" / digit).iterdir())[:12]}
    with Client(server.target) as client:
        answer = client.classify(list(known))
        client.feedback([answer.truth(place, digit) for place, digit in enumerate(known.values())])
        wrong = next(iter(known))  # a later correction replaces the label
        client.feedback([answer.truth(0, "2")])
    truth = {hashlib.sha256(path.read_bytes()).hexdigest(): digit for path, digit in known.items()}
    truth[hashlib.sha256(wrong.read_bytes()).hexdigest()] = "2"
    photos = tmp_path / "feedback" / "digits"
    labels = photos / "labels.csv"

    def run(*words: object) -> str:
        assert cli.main([str(word) for word in words]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    run("svm", model, labels, "--kernel", "linear", "--no-report-photos")
    refitted = read_manifest(model / "2")
    assert refitted.classes == ("0", "1", "2")
    assert sum(refitted.training["svm"]["photos"].values()) == len(known)
    options = "--arch", "tiny5", "--weights", tiny_weights, "--freeze", "all", "--epochs", "1", "--svm", "linear"
    run("train", labels, "--out", tmp_path / "models" / "new", *options, "--no-report-photos")
    assert sum(read_manifest(tmp_path / "models" / "new" / "1").training["photos"].values()) == len(known)
    run("label", photos, "--labels", labels, "--model", model, "--export", tmp_path / "tasks.json")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert {
        Path(task["data"]["image"]).stem: task["annotations"][0]["result"][0]["value"]["choices"][0] for task in tasks
    } == truth
    played = json.loads(run("label", photos, "--replay", labels, "--model", model, "--budget", "20", "--json"))
    assert [count for count, _ in played["curve"]] == [10, 20]


def test_nothing_acknowledged_is_lost_when_all_workers_are_killed(models, start_server, samples, own_photos, tmp_path):
    """Workers count together; after kill -9, half a line is removed, counts are read from the file, and sending again counts once."""
    folder = tmp_path / "feedback"
    options = "--workers", "2", "--feedback", str(folder), "--feedback-photos-mb", "8"
    server = start_server(models, *options)
    paths, labels = zip(*own_photos, strict=True)
    with Client(server.target) as client:
        answer = client.classify(paths)
    truths = [answer.truth(place, label) for place, label in enumerate(labels)]
    for truth in truths:
        with Client(server.target) as client:  # a connection each, so that both workers get some
            (judged,) = client.feedback([replace(truth, answered="")])
        assert judged.is_photo_kept
    expected = Counter("right" if t.label == t.answered else "wrong" for t in truths)
    assert outcomes(samples(server.http)) == expected
    photos = sorted((folder / "digits").glob("*.png"))
    with (folder / "digits" / "labels.csv").open() as file:
        rows = {row["image"]: row["label"] for row in csv.DictReader(file)}
    assert {(folder / "digits" / name).read_bytes(): label for name, label in rows.items()} == {
        path.read_bytes(): label for path, label in own_photos
    }
    assert len(photos) == 40
    server.process.kill()
    server.process.wait()
    with (folder / "feedback.jsonl").open("ab") as file:
        file.write(b'{"index": 7, "model": "digi')
    again = start_server(models, "--feedback", str(folder))
    assert outcomes(samples(again.http)) == expected
    with Client(again.target) as client:
        assert all(each.is_repeated for each in client.feedback(truths))
        (fresh,) = client.feedback([replace(truths[0], image_id="new", request_id="")])
    assert (fresh.is_repeated, len((folder / "feedback.jsonl").read_bytes().splitlines())) == (False, 41)
