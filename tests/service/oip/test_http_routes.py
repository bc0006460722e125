"""The Open Inference Protocol over HTTP: curl and tritonclient[http] get what penult.v1's clients get."""

import asyncio
import base64
import json
import random
import socket
import subprocess
import threading

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from tests.fixtures.gates import eventually

from penult.service.config import ServeConfig
from penult.service.http import responses
from penult.service.http.server import HttpServer
from penult.service.inference.pipeline import Pipeline
from penult.service.models.registry import ModelRegistry
from penult.service.observability.call import DrainGate, Envelope
from penult.service.observability.metrics import Metrics
from penult.service.oip.dataplane import DataPlane
from penult.service.oip.http_routes import OipRoutes
from penult.service.oip.tensors import as_strings
from penult.service.process.wiring import inference_limits

INFER = "/v2/models/digits/infer"
LENGTH = "Inference-Header-Content-Length"


def text_of(photo: bytes) -> str:
    """An encoded photo as it stands in JSON."""
    return base64.b64encode(photo).decode()


def request_of(*photos: bytes, outputs: tuple[str, ...] = ("labels",), **parameters: object) -> dict:
    """A request for encoded photos, in JSON."""
    return {
        "id": "a7",
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(photos)], "data": [*map(text_of, photos)]}],
        "outputs": [{"name": name} for name in outputs],
        "parameters": parameters,
    }


def binary_of(request: dict, *raw: bytes) -> tuple[bytes, dict[str, str]]:
    """The body and the header of a request whose inputs stand behind the JSON."""
    for tensor, data in zip(request["inputs"], raw, strict=True):
        tensor.pop("data", None)
        tensor["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps(request).encode()
    return b"".join([head, *raw]), {LENGTH: str(len(head))}


@pytest.fixture
def ask(server):
    """Post a JSON object or a body to the shared server: ask(path, request, headers={})."""

    def post(path: str, request: dict | bytes, headers: dict[str, str] | None = None) -> httpx.Response:
        content = request if isinstance(request, bytes) else json.dumps(request).encode()
        return httpx.post(server.http + path, content=content, headers=headers or {}, timeout=120)

    return post


@pytest.mark.parametrize("kind", ["image", "uint8", "fp32"])
@pytest.mark.parametrize("api", ["http", "http_aio"])
def test_tritonclient_gets_the_same_labels(found, labels, api, kind):
    """100 of 100 labels equal penult.v1's, from encoded photos and from pixels, over both of its HTTP clients."""
    assert len(labels) == 100
    assert found[api]["labels"][kind] == labels


def test_tritonclient_reads_what_the_server_tells(found, bundle):
    """Over HTTP it is told the same as over gRPC, in JSON."""
    told, same = found["http"]["told"], found["sync"]
    assert (told["live"], told["ready"], told["model_ready"], told["other_ready"]) == (True, True, True, False)
    assert told["server"] == same["server"]
    assert "binary_tensor_data" in told["server"]["extensions"]
    for key in ("inputs", "outputs"):
        shapes = [[str(side) for side in each["shape"]] for each in told["metadata"][key]]
        assert shapes == [each["shape"] for each in same["metadata"][key]]
        assert [e["name"] for e in told["metadata"][key]] == [e["name"] for e in same["metadata"][key]]
    assert [each["data_type"] for each in told["config"]["input"]] == ["TYPE_STRING", "TYPE_UINT8"]
    assert told["index"] == [{"name": "digits", "version": "1", "state": "READY", "reason": ""}]
    (stats,) = told["statistics"]["model_stats"]
    assert stats["inference_count"] >= 300
    assert stats["inference_stats"]["success"]["ns"] > stats["inference_stats"]["compute_infer"]["ns"] > 0


def test_tritonclient_is_refused_clearly(found):
    """An unknown model and a load that is not allowed end with their own codes."""
    told = found["http"]["told"]
    assert told["error"].startswith("404: no such model")
    assert told["load"].startswith("403: ")
    assert "--model-control" in told["load"]


@pytest.mark.parametrize("outputs", ["json", "binary"])
def test_answers_are_those_of_grpc(found, outputs):
    """Logits come out the same to the last bit, as JSON and as raw tensors; classification too."""
    logits = np.float32(found["http"][outputs])
    np.testing.assert_array_equal(logits, np.float32(found["sync"]["logits"])[: len(logits)])
    assert found["http"]["best"] == found["sync"]["best"]


@pytest.mark.system
def test_curl(server, photos, labels, tmp_path):
    """curl alone asks a photo's label."""
    (tmp_path / "request.json").write_text(json.dumps(request_of(photos[0])))
    command = ["curl", "-s", "-f", "--data-binary", f"@{tmp_path}/request.json", server.http + INFER]
    answer = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
    assert answer["outputs"] == [{"name": "labels", "datatype": "BYTES", "shape": [1], "data": [labels[0]]}]
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("digits", "1", "a7")


@pytest.mark.parametrize("path", ["/v2/models/digits/infer", "/v2/models/digits/versions/1/infer"])
def test_forms_of_one_request(ask, photos, crops, labels, path):
    """JSON and binary, images and pixels, flat and nested: the same labels."""

    def pixels(datatype: str, data: list) -> dict:
        shape = list(crops[:3].shape)
        return {"inputs": [{"name": "pixels", "datatype": datatype, "shape": shape, "data": data}], "outputs": [{"name": "labels"}]}  # fmt: skip

    sent = [
        (json.dumps(request_of(*photos[:3])).encode(), {}),
        binary_of(request_of(*photos[:3]), as_strings(photos[:3])),
        (json.dumps(pixels("UINT8", crops[:3].ravel().tolist())).encode(), {}),
        (json.dumps(pixels("FP32", crops[:3].astype(float).tolist())).encode(), {}),
        binary_of(pixels("FP32", []), crops[:3].astype("<f4").tobytes()),
    ]
    for body, headers in sent:
        answer = ask(path, body, headers)
        assert answer.status_code == 200, answer.text
        assert answer.json()["outputs"][0]["data"] == labels[:3]
        assert len(answer.headers["penult-request-id"]) == 16


def test_outputs_choose_their_form(ask, photos):
    """Output by output, or for all: JSON, or raw behind it, in the order asked for."""
    request = request_of(*photos[:2], outputs=("labels", "logits"))
    request["outputs"][1]["parameters"] = {"binary_data": True}
    answer = ask(INFER, request)
    size = int(answer.headers[LENGTH])
    head = json.loads(answer.content[:size])
    assert [each["name"] for each in head["outputs"]] == ["labels", "logits"]
    assert head["outputs"][1]["parameters"] == {"binary_data_size": 80}
    assert np.frombuffer(answer.content[size:], "<f4").shape == (20,)
    everything = ask(INFER, request_of(photos[0], outputs=(), binary_data_output=True))
    head = json.loads(everything.content[: int(everything.headers[LENGTH])])
    assert [each["name"] for each in head["outputs"]] == [
        "logits",
        "probabilities",
        "descriptor",
        "svm_scores",
        "labels",
    ]
    assert all("data" not in each for each in head["outputs"])


def mlserver(photos: list[str], **more: object) -> dict:
    """A request as MLServer's typed classes write it out: [N, 1], content types, and null for what is left out."""
    tensor = {"name": "image", "shape": [len(photos), 1], "datatype": "BYTES", "parameters": {"content_type": "base64", "headers": None}, "data": photos}  # fmt: skip
    return {"id": None, "parameters": None, "inputs": [tensor | more], "outputs": None}


def lines(photo: bytes) -> str:
    """A photo in lines of base64."""
    return base64.encodebytes(photo).decode()


def uri(photo: bytes) -> str:
    """A photo as a data URI."""
    return f"data:image/png;base64,{text_of(photo)}"


def test_requests_as_other_clients_write_them(ask, photos, labels):
    """MLServer's codecs, nested lists, lines, data URIs, nulls and base64 behind the JSON: the same labels, [N]."""
    few = photos[:2]
    behind = [as_strings([base64.b64encode(photo) for photo in few])]
    sent = [
        (mlserver([*map(text_of, few)]), {}),
        (mlserver([*map(lines, few)]), {}),
        (mlserver([*map(uri, few)], shape=[2]), {}),
        (mlserver([[text_of(photo)] for photo in few]), {}),
        (mlserver([[text_of(photo)] for photo in few], shape=[2], parameters=None), {}),
        (mlserver([text_of(few[0]).replace("+", "-").replace("/", "_").rstrip("="), uri(few[1])]), {}),
        binary_of(mlserver([], shape=[2, 1]), *behind),
        (request_of(*few) | {"outputs": [{"name": "labels", "parameters": {"binary_data": None}}], "id": None}, {}),
    ]
    for body, headers in sent:
        answer = ask(INFER, body, headers)
        assert answer.status_code == 200, answer.text
        (told,) = [each for each in answer.json()["outputs"] if each["name"] == "labels"]
        assert (told["shape"], told["data"]) == ([2], labels[:2])
        assert "id" not in answer.json()


def change(**fields: object):
    """Return a change of a good request's input."""
    return lambda request: request["inputs"][0].update(fields)


def put(**fields: object):
    """Return a change of a good request."""
    return lambda request: request.update(fields)


WRONG = {
    "no inputs": (put(inputs=[]), "INPUT_COUNT"),
    "inputs is no list": (put(inputs={"name": "image"}), "JSON"),
    "inputs of texts": (put(inputs=["image"]), "JSON"),
    "unknown input": (change(name="picture"), "INPUT_UNKNOWN"),
    "name is no text": (change(name=7), "JSON"),
    "datatype": (change(datatype="FP64"), "INPUT_DATATYPE"),
    "shape of texts": (change(shape=["1"]), "JSON"),
    "shape of truth": (change(shape=[True]), "JSON"),
    "shape is huge": (change(shape=[10**400]), "JSON"),
    "many sides": (change(shape=[1] * 100), "INPUT_SHAPE"),
    "negative": (change(shape=[-1]), "REQUEST_COUNT"),
    "fewer than said": (change(shape=[2]), "INPUT_SIZE"),
    "not base64": (change(data=["ÿ!"]), "INPUT_CONTENTS"),
    "number for a photo": (change(data=[7]), "INPUT_CONTENTS"),
    "null for a photo": (change(data=[None]), "INPUT_CONTENTS"),
    "two in one list": (change(data=[["/9j/", "/9j/"]]), "INPUT_CONTENTS"),
    "data URI of no base64": (change(data=["data:image/png,%89PNG"]), "INPUT_CONTENTS"),
    "cut base64": (change(data=["/9j/4AAQS"]), "INPUT_CONTENTS"),
    "null for the inputs": (put(inputs=None), "INPUT_COUNT"),
    "null for an output": (put(outputs=[None]), "JSON"),
    "no photo": (change(data=[text_of(b"text")]), "IMAGE_UNKNOWN_FORMAT"),
    "texts for pixels": (change(name="pixels", datatype="UINT8", shape=[1, 32, 32, 3], data=["1"] * 3072), "INPUT_CONTENTS"),
    "ragged pixels": (change(name="pixels", datatype="UINT8", shape=[1, 32, 32, 3], data=[[1], [2, 3]]), "INPUT_CONTENTS"),
    "large pixels": (change(name="pixels", datatype="UINT8", shape=[1, 32, 32, 3], data=[256] * 3072), "INPUT_VALUES"),
    "huge pixels": (change(name="pixels", datatype="FP32", shape=[1, 32, 32, 3], data=[10**300] * 3072), "INPUT_CONTENTS"),
    "nested otherwise": (change(name="pixels", datatype="UINT8", shape=[1, 32, 32, 3], data=[[0] * 3072]), "INPUT_CONTENTS"),
    "binary size of nothing": (change(data=[], parameters={"binary_data_size": 10}), "BINARY_SIZE"),
    "binary size below 0": (change(parameters={"binary_data_size": -10}), "BINARY_SIZE"),
    "output": (put(outputs=[{"name": "softmax"}]), "OUTPUT_UNKNOWN"),
    "classes of labels": (put(outputs=[{"name": "labels", "parameters": {"classification": 2}}]), "OUTPUT_CLASSIFICATION"),
    "scorer": (put(parameters={"scorer": "best"}), "SCORER_UNKNOWN"),
    "parameters of another kind": (put(parameters=[]), "JSON"),
    "id is no text": (put(id=7), "JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_are_told_what_is_wrong(ask, photos, case):
    """Wrong names, types, shapes, sizes and values are 400, each with its reason and one short line."""
    alter, reason = WRONG[case]
    request = request_of(photos[0])
    alter(request)
    answer = ask(INFER, request)
    assert answer.status_code == 400
    assert answer.headers["penult-reason"] == reason, answer.text
    (key,) = answer.json()
    assert key == "error"
    assert len(answer.json()["error"]) < 200
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"7", b'"text"', b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b'{"inputs": NaN}', b"1" * 10_000],
    ids=["cut", "list", "number", "text", "no text", "deep", "deeper", "nan", "digits"],
)  # fmt: skip
def test_what_is_no_json_is_refused(ask, body):
    """A body that is not a JSON object is 400."""
    answer = ask(INFER, body)
    assert (answer.status_code, answer.headers["penult-reason"]) == (400, "JSON")


@pytest.mark.parametrize("length", ["-1", "x", "1.5", "99999999", "1" * 30, "²"])
def test_wrong_lengths_are_refused(ask, photos, length):
    """An Inference-Header-Content-Length that cannot be is 400."""
    answer = ask(INFER, request_of(photos[0]), {LENGTH: length.encode("latin-1")})
    assert (answer.status_code, answer.headers["penult-reason"]) == (400, "JSON_SIZE")


def test_bytes_of_nobody_are_refused(ask, photos):
    """What stands behind the JSON must belong to an input."""
    body, headers = binary_of(request_of(photos[0]), as_strings(photos[:1]))
    answer = ask(INFER, body + b"more", headers)
    assert (answer.status_code, answer.headers["penult-reason"]) == (400, "BINARY_SIZE")


def test_other_answers_have_their_codes(server, ask, photos):
    """What is not there is 404 or 405, a compressed body 415, one of 17 MiB JSON 400; each says why in JSON."""
    cases = [
        (ask("/v2/models/absent/infer", request_of(photos[0])), 404),
        (ask("/v2/models/digits/versions/7/infer", request_of(photos[0])), 404),
        (ask("/v2/models/digits/versions/newest/infer", request_of(photos[0])), 400),
        (ask("/v2/models/digits/explain", b""), 404),
        (httpx.get(server.http + INFER), 405),
        (httpx.get(server.http + "/v2/models/absent"), 404),
        (ask(INFER, request_of(photos[0]), {"Content-Encoding": "gzip"}), 415),
        (ask(INFER, b" " * (17 << 20)), 400),
        (ask("/v2/repository/models/digits/load", b""), 403),
        (ask("/v2/repository/models/digits/unload", b"{}"), 403),
        (ask("/v2/repository/index", b"[]"), 400),
    ]
    assert [answer.status_code for answer, _ in cases] == [code for _, code in cases]
    assert all(set(answer.json()) == {"error"} for answer, _ in cases)


def test_probes(server):
    """Liveness and readiness of server and model, with and without a version."""
    paths = ["health/live", "health/ready", "models/digits/ready", "models/digits/versions/1/ready"]
    assert [httpx.get(f"{server.http}/v2/{path}").status_code for path in paths] == [200] * 4
    for path in ("models/absent/ready", "models/digits/versions/2/ready"):
        assert httpx.get(f"{server.http}/v2/{path}").status_code == 400


def test_it_is_off_unless_switched_on(quick, start_server):
    """Without --http there is no /v2."""
    http = start_server(quick).http
    assert httpx.get(f"{http}/v2/health/live").status_code == 404
    assert httpx.get(f"{http}/livez").status_code == 200


def test_bodies_have_a_limit(quick, start_server, encode):
    """A body above --message-max-bytes is 413, also where no length is told, and the server goes on."""
    http = start_server(quick, "--http", "--message-max-bytes", "100000").http

    def parts():
        for _ in range(100):
            yield bytes(4096)

    for body in (bytes(200_000), parts()):
        try:
            answer = httpx.post(f"{http}/v2/models/light/infer", content=body)
            assert (answer.status_code, answer.headers["penult-reason"]) == (413, "BODY_SIZE")
        except httpx.WriteError:
            pass  # the server had answered and closed before all was written
    assert httpx.post(f"{http}/v2/models/light/infer", json=request_of(encode(230))).json()["outputs"][0]["data"] == ["bright"]  # fmt: skip


@pytest.fixture
def empty_routes():
    """Serve the routes, with no model behind them, in this process: act(port) is called on a thread."""

    def run(act):
        async def whole():
            metrics = Metrics(CollectorRegistry())
            pipeline = Pipeline(inference_limits(ServeConfig()), metrics)
            core = DataPlane(ModelRegistry(), pipeline, None, lambda: True, 1)
            http = HttpServer(
                "127.0.0.1", 0, metrics, lambda: True, OipRoutes(core, Envelope(metrics, DrainGate()), 1 << 20).routes()
            )
            await http.start()
            try:
                return await asyncio.to_thread(act, http.port)
            finally:
                await http.stop()
                await pipeline.close()

        return asyncio.run(whole())

    return run


def test_a_body_that_does_not_come_is_not_waited_for(empty_routes, monkeypatch):
    """Whoever sends half a body is answered 408."""
    monkeypatch.setattr(responses, "_ARRIVAL_S", 0.2)

    def act(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
            connection.sendall(b"POST /v2/models/light/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            return connection.recv(4096)

    assert b" 408 " in empty_routes(act).split(b"\r\n")[0]


@pytest.fixture
def gated(quick, start_server, gate):
    """A server whose runs wait while the gate is shut, with room for two photos."""
    return start_server(quick, "--http", "--queue-max-images", "2", "--threads", "1", env=gate.env)


def test_a_full_queue_and_a_timeout(gated, gate, encode):
    """A full queue is 429 with a hint in seconds; a timeout that is over is 504."""
    url = f"{gated.http}/v2/models/light/infer"
    busy = threading.Thread(target=lambda: httpx.post(url, json=request_of(encode(20), encode(30)), timeout=120))
    gate.shut()
    busy.start()
    gate.wait_for(1)
    answer = httpx.post(url, json=request_of(encode(230)), timeout=60)
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    assert int(answer.headers["retry-after-ms"]) >= 1
    gate.open()
    busy.join()
    gate.shut()
    answer = httpx.post(url, json=request_of(encode(230), timeout=200_000), timeout=60)
    assert (answer.status_code, answer.json()) == (504, {"error": "no answer within the timeout"})


def test_who_goes_away_is_not_worked_for(gated, gate, encode, samples):
    """A client that closes its connection takes its photos out of the queue, and counts as CANCELLED."""
    host, port = gated.http.removeprefix("http://").split(":")
    body = json.dumps(request_of(encode(20), encode(30))).encode()
    head = f"POST /v2/models/light/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    gate.shut()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        gate.wait_for(1)
    key = (
        "penult_requests_total",
        ("code", "CANCELLED"),
        ("method", "http.ModelInfer"),
        ("model", ""),
        ("version", ""),
    )
    eventually(lambda: samples(gated.http).get(key))
    assert samples(gated.http)["penult_dropped_total", ("reason", "cancelled")] == 2


def test_requests_are_counted_under_their_model(server, ask, photos, samples):
    """A request over HTTP counts like one over gRPC, with the model that answered."""
    labels = (("code", "OK"), ("method", "http.ModelInfer"), ("model", "digits"), ("version", "1"))
    before = samples(server.http).get(("penult_requests_total", *labels), 0)
    ask(INFER, request_of(photos[0]))
    assert samples(server.http)["penult_requests_total", *labels] == before + 1


def test_mutated_requests_never_find_a_bug(ask, photos):
    """A hundred requests with bytes changed at random are answered or refused, never with 5xx."""
    chance = random.Random(7)
    plain = json.dumps(request_of(photos[0], scorer="dense")).encode()
    body, headers = binary_of(request_of(photos[0]), as_strings(photos[:1]))
    seen = []
    for turn in range(100):
        good, head = (plain, {}) if turn % 2 else (body, headers)
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data) if chance.random() < 0.3 else 150)] = chance.choice(
                b'0123456789"{}[],:-eN x\xff'
            )
        seen.append(ask(INFER, bytes(data), head).status_code)
    assert set(seen) <= {200, 400, 404}
    assert seen.count(400) > 15


def test_a_leaving_server_answers_what_it_accepted(quick, start_server, gate, encode):
    """After SIGTERM: not ready but alive while it drains, "Connection: close", and the last request is answered."""
    server = start_server(quick, "--http", "--drain-lead", "3", env=gate.env)
    answers, url = [], f"{server.http}/v2/models/light/infer"
    body = request_of(*[encode(230)] * 3)
    asking = threading.Thread(target=lambda: answers.append(httpx.post(url, json=body, timeout=120)))
    gate.shut()
    server.process.terminate()
    eventually(lambda: httpx.get(f"{server.http}/v2/health/ready").status_code == 400)
    asking.start()
    states = [httpx.get(f"{server.http}/v2/{path}") for path in ("health/live", "models/light/ready")]
    assert [state.status_code for state in states] == [200, 400]
    assert states[0].headers["connection"] == "close"
    gate.wait_for(1)
    eventually(lambda: httpx.post(f"{server.http}/v2/models/absent/infer", json=body).status_code == 503)
    assert httpx.get(f"{server.http}/v2/health/live").status_code == 200
    late = httpx.post(url, json=request_of(encode(230)))
    assert (late.status_code, late.headers["penult-reason"]) == (503, "DRAINING")
    assert int(late.headers["retry-after"]) >= 1
    gate.open()
    asking.join()
    assert answers[0].json()["outputs"][0]["data"] == ["bright"] * 3
    assert server.process.wait(60) == 0


def test_models_are_loaded_and_unloaded_where_that_is_allowed(publish_brightness, tmp_path, start_server):
    """With --model-control on, over HTTP: unload takes a model away, load brings it back, parameters are refused."""
    publish_brightness(tmp_path)
    http = start_server(tmp_path, "--http", "--model-control", "on", "--watch-s", "0.1").http
    models = f"{http}/v2/repository/models/light"
    assert httpx.post(f"{models}/unload").status_code == 200
    assert httpx.get(f"{http}/v2/models/light/ready").status_code == 400
    assert httpx.post(f"{http}/v2/repository/index", json={"ready": True}).json() == []
    assert httpx.post(f"{models}/load", json={"parameters": {"config": "{}"}}).status_code == 400
    assert httpx.post(f"{models}/load").status_code == 200
    assert httpx.get(f"{http}/v2/models/light/ready").status_code == 200
    assert httpx.post(f"{http}/v2/repository/models/absent/load").status_code == 404
