"""The manifests' commands, as real servers: they become ready, answer their probes, drain in time and write nowhere."""

import re
import shutil
import signal
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.attacks.bystander import wait_for
from tests.fixtures.authority import Authority

from penult.cli import main
from penult.client import Client, NewItem, RequestFailed, Security

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def answers(server, container: dict, kind: str) -> bool:
    """Ask one of the container's probes, as the kubelet does."""
    probe = container[kind]
    if "grpc" in probe:
        return server.ask_grpc(probe["grpc"]["port"], probe["grpc"]["service"])
    port = probe["httpGet"]["port"]
    number = next((known["containerPort"] for known in container["ports"] if port == known.get("name")), port)
    return server.ask_http(number, probe["httpGet"]["path"])


def test_the_pod_serves_and_drains(build_with, image_environment, variables, quick, start):
    """Its very command becomes ready and passes all probes. At SIGTERM it is no longer ready, still alive and still
    answering, and ends by itself, with 0, within the time that the pod has.
    """  # fmt: skip
    documents = build_with("cpu")
    container, grace_s = documents.container, documents.pod["spec"]["terminationGracePeriodSeconds"]
    environment = image_environment | variables(container) | {"PENULT_DRAIN_LEAD": "4"}
    server = start(container["args"], environment, {"/models": quick})
    assert all(answers(server, container, kind) for kind in PROBES)
    assert httpx.get(f"http://127.0.0.1:{server.ports[9095]}/metrics").status_code == 200
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: not answers(server, container, "readinessProbe"))
    assert answers(server, container, "livenessProbe")
    with Client(f"127.0.0.1:{server.ports[50051]}", retries=0) as client:
        assert client.list_models()
    assert server.process.wait(grace_s) == 0


@pytest.fixture
def authority(tmp_path):
    """Issues certificates."""
    return Authority(tmp_path / "authority")


def test_the_tls_component_serves(build_with, image_environment, variables, quick, start, authority, tmp_path):
    """With its variables and a secret as cert-manager makes it, mounted by links, the probes that it puts in place of
    gRPC's are answered in plain HTTP, and gRPC takes clients with a certificate of the authority only.
    """  # fmt: skip
    container = build_with("cpu", "tls").container
    issued, mine = authority.issue("pod"), authority.issue("mine")
    secret = tmp_path / "tls"
    (secret / "..data").mkdir(parents=True)
    for name, source in (("tls.crt", issued.chain), ("tls.key", issued.key), ("ca.crt", authority.ca)):
        shutil.copyfile(source, secret / "..data" / name)
        (secret / name).symlink_to(Path("..data") / name)
    environment = image_environment | variables(container) | {"PENULT_LOOKUP": "off"}
    server = start(container["args"], environment, {"/models": quick, "/tls": secret})
    assert [set(container[kind]) & {"grpc", "httpGet"} for kind in PROBES] == [{"httpGet"}] * 3
    assert all(answers(server, container, kind) for kind in PROBES)
    target, known = f"127.0.0.1:{server.ports[50051]}", Security(ca=authority.ca, certificate=mine.chain, key=mine.key)
    with Client(target, security=known) as client:
        assert client.list_models()
    with Client(target, retries=0, security=Security(ca=authority.ca)) as client, pytest.raises(RequestFailed):
        client.list_models()


def test_the_access_component_asks_for_tokens_and_signatures(
    build_with, image_environment, variables, publish_brightness, start, tmp_path, capsys
):
    """With the secret that its comment makes, only a signed model is served, and only to those with a token; the
    probes need none.
    """  # fmt: skip
    container, secret = build_with("cpu", "access").container, tmp_path / "access"
    secret.mkdir()
    publish_brightness(tmp_path / "claim")
    publish_brightness(tmp_path / "claim", "unsigned")
    assert main(["token", "alice", "--file", str(secret / "tokens")]) == 0
    token = capsys.readouterr().out.strip()
    assert main(["sign", str(tmp_path / "claim" / "light"), "--new-key", str(tmp_path / "release-key")]) == 0
    shutil.copyfile(tmp_path / "release-key.pub", secret / "trusted.pub")
    environment = image_environment | variables(container) | {"PENULT_LOOKUP": "off"}
    server = start(container["args"], environment, {"/models": tmp_path / "claim", "/access": secret})
    assert all(answers(server, container, kind) for kind in PROBES)
    target = f"127.0.0.1:{server.ports[50051]}"
    with Client(target, security=Security(token=token)) as client:
        assert [(model.version.name, model.is_signed) for model in client.list_models()] == [("light", True)]
    with Client(target, retries=0) as client, pytest.raises(RequestFailed, match="token"):
        client.list_models()


@pytest.mark.parametrize("name", ["penult", "penult-grpc"])
def test_the_runtimes_serve(name, kserve, publish_brightness, image_environment, variables, start, tmp_path):
    """Each runtime's command answers its probes, with what storageUri names at /mnt/models, and over HTTP the model is
    found by the InferenceService's name.
    """  # fmt: skip
    service = kserve.all("InferenceService")[0]["metadata"]["name"]
    publish_brightness(tmp_path / "claim", service)
    runtime = next(runtime for runtime in kserve.all("ServingRuntime") if runtime["metadata"]["name"] == name)
    (container,) = runtime["spec"]["containers"]
    environment = image_environment | variables(container)
    server = start(container["args"], environment, {"/mnt/models": tmp_path / "claim"})
    assert answers(server, container, "readinessProbe")
    assert answers(server, container, "livenessProbe")
    asked = httpx.get(f"http://127.0.0.1:{server.ports[9095]}/v2/models/{service}/ready").status_code
    assert asked == (200 if name == "penult" else 404)


def test_one_bundle_is_no_repository(publish_brightness, image_environment, start, tmp_path):
    """If storageUri names one model's folder instead of the one above it, the last line says so."""
    publish_brightness(tmp_path / "claim", "pets")
    with pytest.raises(AssertionError, match="is one model, not a repository"):
        start(["serve", "--models=/mnt/models"], image_environment, {"/mnt/models": tmp_path / "claim" / "pets"})


def test_a_read_only_root_is_enough(build_with, image_environment, variables, quick, start, tmp_path):
    """The pod's command opens nothing for writing, and makes nothing, outside /tmp and /dev; nor does answering."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed (Debian's package of that name)")
    container, trace = build_with("cpu").container, tmp_path / "trace"
    # As in the image, where no bytecode is written.
    environment = image_environment | variables(container) | {"PYTHONDONTWRITEBYTECODE": "1"}
    calls = "trace=openat,open,creat,mkdir,mkdirat,rename,renameat2,unlink,unlinkat,symlink,link"
    before = ("strace", "-D", "-f", "-qq", "-e", calls, "-o", trace)
    server = start(container["args"], environment, {"/models": quick}, before)
    with Client(f"127.0.0.1:{server.ports[50051]}") as client:
        assert client.list_models()
    text = trace.read_text()
    assert str(quick) in text  # it saw the server open its models
    done = [line for line in text.splitlines() if " = -1 " not in line]
    writing = [line for line in done if re.search(r"O_WRONLY|O_RDWR|O_CREAT|creat\(|mkdir|rename|link", line)]
    paths = {path for line in writing for path in re.findall(r'"([^"]+)"', line)}
    # Its working folder is below /tmp here, too; in the image it is the root.
    allowed = ("/tmp/", "/dev/", "/proc/self/")
    assert {path for path in paths if not path.startswith(allowed) or path.startswith(str(tmp_path))} == set()


def test_the_lookup_component_keeps_items(build_with, image_environment, variables, quick, start, make_database):
    """With components/lookup and a secret that names a real PostgreSQL, what one pod stores another finds."""
    container = build_with("cpu", "lookup").container
    assert variables(container)["PENULT_LOOKUP"].startswith("postgresql://")
    environment = image_environment | variables(container) | {"PENULT_LOOKUP": make_database()}
    one, other = (start(container["args"], environment, {"/models": quick}) for _ in range(2))
    photo = np.full((8, 8, 3), 200, dtype=np.uint8)
    with Client(f"127.0.0.1:{one.ports[50051]}") as client:
        assert client.put_items("seen", [NewItem("a", photo, label="bright")], model="light") == (None,)
    with Client(f"127.0.0.1:{other.ports[50051]}") as client:
        (hits,) = client.lookup([photo], "seen", model="light").results
    assert [hit.id for hit in hits] == ["a"]
