"""The manifests' commands, as real servers: they become ready, answer their probes, drain in time and write nowhere."""

import re
import shutil
import signal
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from penult.client import Client, NewItem

DEPLOY = Path(__file__).parents[2] / "deploy"


def variables(container: dict, replaced: dict[str, str]) -> dict[str, str]:
    """The container's environment; what comes from elsewhere is in `replaced`."""
    return {each["name"]: each.get("value", replaced.get(each["name"], "")) for each in container["env"]}


def answers(server, container: dict, kind: str) -> bool:
    """Ask one of the container's probes, as the kubelet does."""
    probe = container[kind]
    if "grpc" in probe:
        return server.ask_grpc(probe["grpc"]["port"], probe["grpc"]["service"])
    port = probe["httpGet"]["port"]
    number = next((known["containerPort"] for known in container["ports"] if port == known.get("name")), port)
    return server.ask_http(number, probe["httpGet"]["path"])


@pytest.fixture(scope="session")
def pod(build_with) -> dict:
    """The pod of the cpu overlay."""
    documents = build_with("cpu")
    return next(d for d in documents if d["kind"] == "Deployment")["spec"]["template"]["spec"]


def test_the_pod_serves_and_drains(pod, image_environment, quick, start):
    """Its very command becomes ready and passes all probes. At SIGTERM it is no longer ready, still alive and still
    answering, and ends by itself, with 0, within the time that the pod has.
    """  # fmt: skip
    (container,) = pod["containers"]
    environment = image_environment | variables(container, {"PENULT_THREADS": "2"})
    server = start(container["args"], environment, {"/models": quick})
    assert [answers(server, container, kind) for kind in ("startupProbe", "readinessProbe", "livenessProbe")] == [
        True
    ] * 3
    assert httpx.get(f"http://127.0.0.1:{server.ports[9095]}/metrics").status_code == 200
    signalled = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    while answers(server, container, "readinessProbe"):
        assert time.monotonic() - signalled < pod["terminationGracePeriodSeconds"]
    assert answers(server, container, "livenessProbe")
    with Client(f"127.0.0.1:{server.ports[50051]}", retries=0) as client:
        assert client.list_models()
    assert server.process.wait(pod["terminationGracePeriodSeconds"]) == 0


def test_the_tls_probes_answer(build_with, image_environment, quick, start):
    """The probes that components/tls puts in place of gRPC's are answered by the same command."""
    documents = build_with("cpu", "tls")
    (container,) = next(d for d in documents if d["kind"] == "Deployment")["spec"]["template"]["spec"]["containers"]
    environment = {"PENULT_THREADS": "2", "PENULT_LOOKUP": "off"} | image_environment
    server = start(container["args"], environment, {"/models": quick})
    probes = ("startupProbe", "readinessProbe", "livenessProbe")
    assert [next(iter(set(container[kind]) & {"grpc", "httpGet"})) for kind in probes] == ["httpGet"] * 3
    assert all(answers(server, container, kind) for kind in probes)


@pytest.mark.parametrize("name", ["penult", "penult-grpc"])
def test_the_runtimes_serve(name, tools, publish_brightness, image_environment, start, tmp_path):
    """Each runtime's command answers its probes, with what storageUri names at /mnt/models, and the model is known by
    the InferenceService's name.
    """  # fmt: skip
    documents = tools.build(DEPLOY / "kserve")
    service = next(d for d in documents if d["kind"] == "InferenceService")["metadata"]["name"]
    publish_brightness(tmp_path / "claim", service)
    runtime = next(d for d in documents if d["kind"] == "ServingRuntime" and d["metadata"]["name"] == name)
    (container,) = runtime["spec"]["containers"]
    environment = image_environment | variables(container, {"PENULT_THREADS": "2"})
    server = start(container["args"], environment, {"/mnt/models": tmp_path / "claim"})
    assert answers(server, container, "readinessProbe")
    assert answers(server, container, "livenessProbe")
    asked = httpx.get(f"http://127.0.0.1:{server.ports[9095]}/v2/models/{service}/ready").status_code
    assert asked == (200 if name == "penult" else 404)


def test_one_bundle_is_no_repository(publish_brightness, image_environment, start, tmp_path):
    """Where storageUri names one model's folder instead of the one above it, the log says that there is no model."""
    publish_brightness(tmp_path / "claim", "pets")
    with pytest.raises(AssertionError, match="holds no model"):
        start(["serve", "--models=/mnt/models"], image_environment, {"/mnt/models": tmp_path / "claim" / "pets"})


def test_a_read_only_root_is_enough(pod, image_environment, quick, start, tmp_path):
    """The pod's command opens nothing for writing, and makes nothing, outside /tmp and /dev; nor does answering."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed (Debian's package of that name)")
    (container,) = pod["containers"]
    # As in the image, where no bytecode is written.
    environment = image_environment | variables(container, {"PENULT_THREADS": "1"}) | {"PYTHONDONTWRITEBYTECODE": "1"}
    trace = tmp_path / "trace"
    calls = "trace=openat,open,creat,mkdir,mkdirat,rename,renameat2,unlink,unlinkat,symlink,link"
    before = ("strace", "-D", "-f", "-qq", "-e", calls, "-o", trace)
    server = start(container["args"], environment, {"/models": quick}, before)
    with Client(f"127.0.0.1:{server.ports[50051]}") as client:
        assert client.list_models()
    text = trace.read_text()
    assert str(quick) in text  # it saw the server open its models
    writing = [
        line for line in text.splitlines() if re.search(r"O_WRONLY|O_RDWR|O_CREAT|creat\(|mkdir|rename|link", line)
    ]
    paths = {path for line in writing for path in re.findall(r'"([^"]+)"', line) if " = -1 " not in line}
    allowed = ("/tmp/", "/dev/", "/proc/self/")
    assert {path for path in paths if not path.startswith(allowed) or path.startswith(str(tmp_path))} == set()


@pytest.fixture(scope="session")
def stored(make_database) -> str:
    """A database of its own in a real PostgreSQL with pgvector."""
    return make_database()


def test_the_lookup_component_keeps_items(build_with, image_environment, quick, start, stored):
    """With components/lookup and a secret that names a real PostgreSQL, what one pod stores another finds."""
    documents = build_with("cpu", "lookup")
    (container,) = next(d for d in documents if d["kind"] == "Deployment")["spec"]["template"]["spec"]["containers"]
    origin = next(each for each in container["env"] if each["name"] == "PENULT_LOOKUP")["valueFrom"]
    assert origin == {"secretKeyRef": {"name": "penult-lookup", "key": "url"}}
    environment = image_environment | variables(container, {"PENULT_THREADS": "1", "PENULT_LOOKUP": stored})
    one, other = (start(container["args"], environment, {"/models": quick}) for _ in range(2))
    photo = np.full((8, 8, 3), 200, dtype=np.uint8)
    with Client(f"127.0.0.1:{one.ports[50051]}") as client:
        client.put_items("seen", [NewItem("a", photo, label="bright")], model="light")
    with Client(f"127.0.0.1:{other.ports[50051]}") as client:
        (hits,) = client.lookup([photo], "seen", model="light").results
    assert [hit.id for hit in hits] == ["a"]
