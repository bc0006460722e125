"""`penult serve` as a process: it starts quickly or says in one line why not, and describes itself."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.fixtures.gates import eventually

from penult.service.runtime.session import has_cuda_device
from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc

SERVICE = "penult.v1.PenultService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def _serve(models: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a server that is expected to give up."""
    return subprocess.run(
        [sys.executable, "-m", "penult.cli", "serve", "--models", str(models), "--port", "0", "--metrics-port", "0",
         "--log-level", "error", *options],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def light_models(publish_brightness, tmp_path_factory):
    """A repository with a model that loads in no time."""
    root = tmp_path_factory.mktemp("light")
    publish_brightness(root)
    return root


@pytest.mark.parametrize(("name", "expected"), [("", SERVING), (SERVICE, SERVING), ("live", SERVING)])
def test_health_knows_the_server_the_service_and_liveness(server, connect, name, expected):
    """A ready server is SERVING under "", under its service's name and under `live`."""
    stub = health_pb2_grpc.HealthStub(connect(server.target))
    assert stub.Check(health_pb2.HealthCheckRequest(service=name)).status == expected


def test_health_of_a_stranger_is_not_found(server, connect, failure):
    """An unknown name is NOT_FOUND, so that a misspelt probe does not look like a sick server."""
    stub = health_pb2_grpc.HealthStub(connect(server.target))
    error = failure(lambda: stub.Check(health_pb2.HealthCheckRequest(service="penult.v1.Other")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


def _listed(channel: grpc.Channel) -> set[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    return {service.name for service in answer.list_services_response.service}


def test_reflection_is_on_by_default_on_loopback(server, connect):
    """A client without the .proto can list the services and fetch their description."""
    channel = connect(server.target)
    assert _listed(channel) >= {SERVICE, "grpc.health.v1.Health"}
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)])
    )
    assert b"ClassifyRequest" in answer.file_descriptor_response.file_descriptor_proto[0]


def test_reflection_can_be_turned_off_and_messages_bounded(light_models, start_server, connect, failure, encode):
    """--reflection off removes it; --message-max-bytes refuses larger messages; the next request is answered."""
    running = start_server(light_models, "--reflection", "off", "--message-max-bytes", "100000")
    channel = connect(running.target)
    assert failure(lambda: _listed(channel)).code() is grpc.StatusCode.UNIMPLEMENTED
    stub = penult_pb2_grpc.PenultServiceStub(channel)
    large = pb.ClassifyRequest(images=[pb.Image(encoded=bytes(100_001))])
    assert failure(lambda: stub.Classify(large)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    small = pb.ClassifyRequest(images=[pb.Image(encoded=encode(10))])
    assert stub.Classify(small).results[0].classification.label == "dark"


def test_an_unknown_method_is_unimplemented(server, connect, failure):
    """A method that the service lacks is UNIMPLEMENTED."""
    method = connect(server.target).unary_unary(f"/{SERVICE}/Nonsense")
    assert failure(lambda: method(b"")).code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x05ab", b"\x0a\x04\x0a\x02\xff\xfe"])
def test_broken_messages_are_invalid_arguments(server, connect, failure, data):
    """Bytes that are no protobuf are INVALID_ARGUMENT on the real server too, and the same channel goes on."""
    method = connect(server.target).unary_unary(f"/{SERVICE}/GetModel")
    assert failure(lambda: method(data)).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert pb.GetModelResponse.FromString(method(b"")).model.version.name == "digits"


def test_a_full_queue_answers_at_once_with_a_hint(quick, start_server, gate, connect, encode):
    """Concurrent requests above --queue-max-images get RESOURCE_EXHAUSTED with a pushback; the rest are answered."""
    options = ("--queue-max-images", "20", "--batch-max-images", "4", "--threads", "1")
    running = start_server(quick, *options, env=gate.env)
    stub = penult_pb2_grpc.PenultServiceStub(connect(running.target))
    request = pb.ClassifyRequest(images=[pb.Image(encoded=encode(10))] * 12)
    gate.shut()
    accepted = stub.Classify.future(request, timeout=120)
    gate.wait_for(1)
    for error in [stub.Classify.future(request, timeout=120).exception() for _ in range(3)]:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailing = dict(error.trailing_metadata())
        assert trailing["penult-reason"] == "QUEUE_FULL"
        assert int(trailing["grpc-retry-pushback-ms"]) >= 50
    gate.open()
    assert len(accepted.result().results) == 12
    assert len(stub.Classify(request).results) == 12


def test_a_passed_deadline_is_told_and_its_photos_never_run(
    quick, start_server, gate, connect, failure, encode, samples
):
    """A request whose deadline passes in the queue is DEADLINE_EXCEEDED, costs no run, and the next is answered."""
    running = start_server(quick, "--batch-max-images", "1", "--threads", "1", env=gate.env)
    stub = penult_pb2_grpc.PenultServiceStub(connect(running.target))
    request = pb.ClassifyRequest(images=[pb.Image(encoded=encode(10))] * 30)
    gate.shut()
    first = stub.Classify.future(pb.ClassifyRequest(images=request.images[:1]), timeout=120)
    gate.wait_for(1)
    error = failure(lambda: stub.Classify(request, timeout=1))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    def dropped() -> float:
        """The client's reset may arrive before the server's own clock reaches the deadline."""
        found = samples(running.http)
        return sum(found[("penult_dropped_total", ("reason", why))] for why in ("deadline", "cancelled"))

    eventually(lambda: dropped() == 30)
    gate.open()
    for answer in (first.result(), stub.Classify(pb.ClassifyRequest(images=request.images[:1]))):
        assert answer.results[0].classification.label == "dark"
    assert samples(running.http)[("penult_batch_size_sum",)] == 2


def test_the_start_is_told_in_five_lines(models, start_server):
    """With the digits bundle, `penult serve` says in five lines what it does, and loads no library of training."""
    running = start_server(models)
    assert running.target.startswith("127.0.0.1:")
    lines = running.log.read_text().splitlines()
    expected = (
        rf"penult \S+ starts; settings: models={re.escape(str(models))} port=0 metrics_port=0 drain_lead=0.0",
        r"loaded digits version 1 in \d+\.\d s: tiny5 on CPUExecutionProvider \(\d+ threads a run, \d+ runs at a time\), "
        r"10 classes, golden answers within \d+e-\d+",
        rf"gRPC on {running.target}; page to try a photo, metrics and probes at {running.http}/",
        rf"collections are kept in {re.escape(str(models.parent))}/lookup",
        rf"hint: no --trusted-key is set, so every model in {re.escape(str(models))} is served, without a check of its origin; .*",
    )
    assert len(lines) == len(expected)
    for line, words in zip(lines, expected, strict=True):
        assert re.search(rf" INFO    penult\.[\w.]+: {words}$", line), line
    maps = Path(f"/proc/{running.process.pid}/maps").read_text()
    assert "onnxruntime" in maps
    for library in ("libtorch", "sklearn"):
        assert library not in maps


def test_serving_never_imports_torch_or_scikit_learn(run_python, models):
    """Importing the server and loading a bundle with a linear SVM brings neither torch nor scikit-learn along."""
    code = f"""
import pathlib, sys
import penult.service.process.server
from penult.bundle.reader import read_bundle
from penult.service.models.loader import Placement, load
model = load(read_bundle(pathlib.Path({str(models)!r}) / "digits"), Placement("cpu"))
print(model.scorers, sorted({{name.partition(".")[0] for name in sys.modules}} & {{"torch", "sklearn", "scipy"}}))
"""
    result = run_python("-c", code)
    assert result.stdout.strip() == "('dense', 'svm') []", result.stderr


def _damaged(models: Path) -> Path:
    with (models / "light" / "1" / "model.onnx").open("ab") as file:
        file.write(b"x")
    return models


@pytest.mark.server
@pytest.mark.parametrize(
    ("prepare", "told"),
    [(lambda root: root / "absent", "--models"), (lambda root: root, "penult train PHOTOS --out")],
    ids=["missing", "empty"],
)
def test_nothing_to_serve_is_exit_1_with_one_line(tmp_path, prepare, told):
    """A repository that is missing or empty ends the start with exit code 1 and one line on what to do."""
    result = _serve(prepare(tmp_path))
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("penult: ")
    assert told in line


@pytest.mark.server
def test_no_usable_model_is_exit_1_with_the_reason(publish_brightness, tmp_path):
    """With only a damaged model, the log tells the reason, the last line the verdict, and the exit code is 1."""
    publish_brightness(tmp_path)
    result = _serve(_damaged(tmp_path))
    refused, verdict = result.stderr.splitlines()
    assert (result.returncode, result.stdout) == (1, "")
    assert "refused light version 1: " in refused
    assert "FILE_DIGEST" in refused
    assert verdict.startswith("penult: no model in ")


@pytest.mark.server
@pytest.mark.parametrize("flag", ["--port", "--metrics-port"])
def test_a_port_in_use_is_exit_1_with_one_line(light_models, flag):
    """A port that another program listens on ends the start with exit code 1 and one line that names port and flag."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = _serve(light_models, flag, str(port))
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"penult: port {port} on 127.0.0.1")
    assert flag in line


def test_the_port_of_another_penult_is_in_use(server, light_models):
    """Two servers never share a port: the second one is refused."""
    result = _serve(light_models, "--port", server.target.rpartition(":")[2])
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "another penult server has it" in line


def test_the_metrics_port_of_another_penult_is_in_use(server, light_models):
    """Who starts a second server with the same ports is told that a penult has them, and both flags."""
    result = _serve(light_models, "--metrics-port", server.http.rpartition(":")[2])
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert re.search(r"another penult server has it; .* --port and --metrics-port", line)


@pytest.mark.server
@pytest.mark.parametrize("flag", ["--port", "--metrics-port"])
def test_an_address_of_another_machine_is_one_line(light_models, flag):
    """An address that this machine has not is named, not blamed on another program."""
    result = _serve(light_models, "--host", "192.0.2.1", flag, "0")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "this machine has no address 192.0.2.1; give one of its own with --host" in line


@pytest.mark.server
@pytest.mark.skipif(has_cuda_device(), reason="shows what happens without a CUDA device; this has one")
def test_cuda_without_a_device_is_exit_1_with_one_line(light_models):
    """--device cuda on a machine without CUDA ends the start with exit code 1 and one line."""
    result = _serve(light_models, "--device", "cuda")
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("penult: --device cuda: ")


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_ipv6_addresses_are_bracketed(light_models, start_server, connect):
    """On ::1 the addresses of the ready line can be connected to as they stand."""
    running = start_server(light_models, "--host", "::1")
    assert running.target.startswith("[::1]:")
    assert httpx.get(f"{running.http}/readyz").status_code == 200
    assert penult_pb2_grpc.PenultServiceStub(connect(running.target)).ListModels(pb.ListModelsRequest()).models


def test_settings_come_from_the_environment_too(light_models, start_server, connect, failure):
    """A PENULT_* variable reaches the running server."""
    running = start_server(light_models, env={"PENULT_REQUEST_MAX_IMAGES": "2"})
    stub = penult_pb2_grpc.PenultServiceStub(connect(running.target))
    error = failure(lambda: stub.Classify(pb.ClassifyRequest(images=[pb.Image(encoded=b"x")] * 3)))
    assert "1 to 2 images" in error.details()
