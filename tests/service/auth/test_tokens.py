"""Bearer tokens: who may ask for what, over gRPC and HTTP, and a file that changes."""

import asyncio
import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from penult.cli import main
from penult.client import AsyncClient, Client, NewItem, RequestFailed, Security, SecurityError
from penult.oip import grpc_service_pb2 as oip
from penult.oip import grpc_service_pb2_grpc
from penult.service.auth.tokens import RIGHTS, Tokens, right_of
from penult.service.errors import ConfigError, NotAllowed, Unauthenticated
from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc


def _line(name: str, right: str, token: str) -> str:
    return f"{name} {right} {hashlib.sha256(token.encode()).hexdigest()}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three callers; each one's token is called like its right."""
    path = tmp_path / "tokens"
    path.write_text("# who may ask\n\n" + "".join(_line(f"the-{right}er", right, right) for right in RIGHTS))
    return path


@pytest.fixture
def guarded(quick, file, start_server, tmp_path):
    """A server that knows these tokens, its models controlled by RPC, with HTTP."""
    return start_server(
        quick, "--tokens", str(file), "--http", "--model-control", "on", "--lookup", str(tmp_path / "lookup")
    )


def _code(act: Callable[[], object]) -> grpc.StatusCode:
    try:
        act()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def _with(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


def test_each_right_opens_what_it_should(guarded, encode, connect, request_of):
    """Without a token nothing is answered but health; read, write and admin each open their methods and those below."""
    channel = connect(guarded.target)
    stub, open_ = penult_pb2_grpc.PenultServiceStub(channel), grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
    photo = request_of(encode(230))
    needs = {
        "read": [
            lambda m: stub.Classify(photo, metadata=m),
            lambda m: next(iter(stub.StreamClassify(iter([photo]), metadata=m))),
            lambda m: stub.ListCollections(pb.ListCollectionsRequest(), metadata=m),
            lambda m: open_.ServerMetadata(oip.ServerMetadataRequest(), metadata=m),
        ],
        "write": [
            lambda m: stub.DeleteItems(pb.DeleteItemsRequest(collection="none", ids=["a"]), metadata=m),
            lambda m: stub.PutItems(pb.PutItemsRequest(collection="none"), metadata=m),
        ],
        "admin": [
            lambda m: stub.DropCollection(pb.DropCollectionRequest(collection="none"), metadata=m),
            lambda m: open_.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="light"), metadata=m),
        ],
    }
    missing, denied = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
    for right, calls in needs.items():
        for call in calls:
            assert _code(lambda call=call: call(_with(""))) is missing
            assert _code(lambda call=call: call(_with("guessed"))) is missing
            for token in RIGHTS:
                code = _code(lambda call=call, token=token: call(_with(token)))
                if RIGHTS.index(token) < RIGHTS.index(right):
                    assert code is denied
                else:
                    assert code not in (missing, denied)


def test_every_method_has_the_right_that_fits_it():
    """What changes items needs write, what changes collections or models admin, everything else read."""
    methods = [
        m.name
        for s in (pb.DESCRIPTOR, oip.DESCRIPTOR)
        for service in s.services_by_name.values()
        for m in service.methods
    ]
    rights = {right: {name for name in methods if right_of(name) == right} for right in RIGHTS}
    assert rights["write"] == {"PutItems", "DeleteItems", "Feedback"}
    assert rights["admin"] == {"DropCollection", "ReplaceCollection", "RepositoryModelLoad", "RepositoryModelUnload"}
    assert not any(
        word in name for name in rights["read"] for word in ("Put", "Delete", "Drop", "Replace", "ModelLoad", "Unload")
    )


def test_health_and_probes_need_no_token(guarded, connect):
    """Health, readiness and metrics answer whoever comes; reflection, which shows the API, asks for a token."""
    channel = connect(guarded.target)
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    open_ = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
    assert open_.ServerReady(oip.ServerReadyRequest()).ready
    assert httpx.get(f"{guarded.http}/readyz").status_code == 200
    assert httpx.get(f"{guarded.http}/v2/health/ready").status_code == 200
    assert httpx.get(f"{guarded.http}/metrics").status_code == 200
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    ask = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    assert _code(lambda: next(reflection.ServerReflectionInfo(ask))) is grpc.StatusCode.UNAUTHENTICATED
    ask = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    assert next(reflection.ServerReflectionInfo(ask, metadata=_with("read"))).list_services_response.service


def test_http_asks_for_them_too(guarded):
    """Over HTTP it is 401 with a challenge without a token, 403 where it is not good for it, and an answer with one."""
    url, load = f"{guarded.http}/v2/models/light", f"{guarded.http}/v2/repository/models/light/load"
    refused = httpx.get(url)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert refused.headers["penult-reason"] == "TOKEN_MISSING"
    for wrong in ("Bearer guessed", "Basic cmVhZDpyZWFk", "Bearer", "read", "Bearer \xe4"):
        assert httpx.get(url, headers=[(b"authorization", wrong.encode("latin-1"))]).status_code == 401
    assert httpx.get(url, headers={"authorization": "bearer read"}).json()["name"] == "light"
    assert httpx.post(load, headers={"authorization": "Bearer write"}).status_code == 403
    assert httpx.post(load, headers={"authorization": "Bearer admin"}).status_code == 200


async def _ask_async(target: str, photo: bytes, security: Security) -> str:
    async with AsyncClient(target, 10, security=security) as client:
        return (await client.classify([photo])).results[0].label


def test_clients_send_them(guarded, encode, tmp_path, monkeypatch, capsys):
    """Client, AsyncClient and the command line send a token, from a file or a variable; refusals say what is missing."""
    photo, secret = encode(230), tmp_path / "secret"
    secret.write_text("write\n")
    with Client(guarded.target, 10, security=Security(token_file=secret)) as client:
        assert client.classify([photo]).results[0].label == "bright"
        assert client.put_items("c", [NewItem("a", photo)]) == (None,)
        with pytest.raises(RequestFailed) as caught:
            client.drop_collection("c")
    assert (caught.value.code, caught.value.reason) == ("PERMISSION_DENIED", "TOKEN_RIGHT")
    assert asyncio.run(_ask_async(guarded.target, photo, Security(token="read"))) == "bright"
    (tmp_path / "bright.png").write_bytes(photo)
    command = ["classify", str(tmp_path / "bright.png"), "--target", guarded.target, "--json"]
    assert main(command) == 1
    assert "--token-file" in capsys.readouterr().err
    assert main([*command, "--token-file", str(secret)]) == 0
    monkeypatch.setenv("PENULT_TOKEN", "read")
    assert main(command) == 0
    assert main(["bench", "--target", guarded.target, "--requests", "8", "--warmup", "0", "--json"]) == 0
    told = capsys.readouterr().out
    assert json.loads(told.splitlines()[-1])["errors"] == {}
    assert "token" not in told.splitlines()[-1]


def test_a_token_does_not_leave_this_machine_in_clear():
    """A token to another machine needs TLS: the client refuses before it connects."""
    for target in ("192.0.2.1:50051", "penult.example:50051", ["127.0.0.1:1", "192.0.2.1:50051"]):
        with pytest.raises(SecurityError, match="--tls"):
            Client(target, security=Security(token="secret"))
    Client("localhost:1", security=Security(token="secret")).close()
    assert "secret" not in repr(Security(token="secret"))


def test_a_file_that_changes_is_followed(guarded, file, connect, request_of, encode, samples):
    """A token added is good within seconds, one removed is not; a broken file changes nothing and is counted."""
    stub, photo = penult_pb2_grpc.PenultServiceStub(connect(guarded.target)), request_of(encode(230))

    def eventually(token: str, code: grpc.StatusCode) -> None:
        end = time.monotonic() + 120
        while _code(lambda: stub.Classify(photo, metadata=_with(token))) is not code:
            assert time.monotonic() < end, "did not happen in time"
            time.sleep(0.05)

    assert main(["token", "guest", "--file", str(file)]) == 0
    assert main(["token", "guest"[::-1], "--right", "admin", "--file", str(file)]) == 0
    with file.open("a") as lines:
        lines.write(_line("new", "read", "new"))
    eventually("new", grpc.StatusCode.OK)
    file.write_text("one two three\n")
    refused = "penult_credentials_reloads_total", ("kind", "tokens"), ("outcome", "refused")
    end = time.monotonic() + 120
    while samples(guarded.http).get(refused) != 1:
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)
    eventually("new", grpc.StatusCode.OK)
    file.write_text(_line("only", "read", "only"))
    eventually("new", grpc.StatusCode.UNAUTHENTICATED)
    eventually("only", grpc.StatusCode.OK)


def test_refusals_are_counted_and_hold_no_token(guarded, connect, request_of, encode, samples):
    """A refused call counts under its method and code; what was sent as a token is in no log and no answer."""
    stub = penult_pb2_grpc.PenultServiceStub(connect(guarded.target))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Classify(request_of(encode(230)), metadata=_with("my-own-secret"))
    trailing = dict(caught.value.trailing_metadata())
    assert trailing["penult-reason"] == "TOKEN_UNKNOWN"
    assert "my-own-secret" not in caught.value.details() + str(trailing) + guarded.log.read_text()
    counted = {key: value for key, value in samples(guarded.http).items() if key[0] == "penult_requests_total"}
    assert [v for k, v in counted.items() if dict(k[1:]) | {"model": "", "version": ""} == {
        "method": "Classify", "code": "UNAUTHENTICATED", "model": "", "version": ""
    }] == [1]  # fmt: skip


def _carry(source: socket.socket, to: socket.socket, passed: list[int]) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            passed.append(len(data))
            to.sendall(data)


@pytest.fixture
def counted(guarded):
    """An address that passes one connection on to the server, and the sizes of what came from the client."""
    passed: list[int] = []
    host, port = guarded.target.rsplit(":", 1)
    with socket.create_server(("127.0.0.1", 0)) as relay, socket.create_connection((host, int(port))) as there:

        def accept() -> None:
            here, _ = relay.accept()
            with here:
                back = threading.Thread(target=_carry, args=(there, here, []))
                back.start()
                _carry(here, there, passed)
                there.shutdown(socket.SHUT_RDWR)
                back.join(10)

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"127.0.0.1:{relay.getsockname()[1]}", passed
        thread.join(120)


def test_a_refused_body_is_not_read(counted):
    """A caller without a token is refused on its headers: of 60 MB not a quarter is taken from it."""
    target, passed = counted
    large = pb.ClassifyRequest(images=[pb.Image(encoded=bytes(6 << 20)) for _ in range(10)])
    with grpc.insecure_channel(target, options=[("grpc.max_send_message_length", -1)]) as channel:
        stub = penult_pb2_grpc.PenultServiceStub(channel)
        assert _code(lambda: stub.Classify(large)) is grpc.StatusCode.UNAUTHENTICATED
    assert sum(passed) < 15 << 20


def test_a_made_token_is_shown_once_and_stored_as_a_digest(tmp_path: Path, capsys):
    """`penult token` prints a long random token and keeps only its SHA-256, in a file for its owner."""
    path = tmp_path / "tokens"
    assert main(["token", "alice", "--right", "write", "--file", str(path)]) == 0
    token = capsys.readouterr().out.strip()
    assert main(["token", "bob", "--file", str(path), "--json"]) == 0
    other = json.loads(capsys.readouterr().out)["token"]
    assert len(token) > 40
    assert token != other
    assert token not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    tokens = Tokens(path)
    assert tokens.check(f"Bearer {token}", "write") == "alice"
    assert tokens.check(f"bearer {other}", "read") == "bob"
    with pytest.raises(NotAllowed):
        tokens.check(f"Bearer {other}", "write")
    with pytest.raises(Unauthenticated):
        tokens.check(token, "read")
    assert main(["token", "no spaces", "--file", str(path)]) == 1


@pytest.mark.parametrize(
    "text", ["alice", "alice read", "alice all " + "0" * 64, "alice read " + "0" * 63, "a b c d", "\0"]
)
def test_a_file_that_is_none_is_refused_with_its_line(text: str, tmp_path: Path):
    """A line that is not NAME RIGHT DIGEST is named; the server does not start with it."""
    path = tmp_path / "tokens"
    path.write_text("# comment\n" + text + "\n")
    with pytest.raises(ConfigError, match="line 2"):
        Tokens(path)


def test_an_empty_file_lets_nobody_in(tmp_path: Path):
    """Removing all lines revokes all tokens, instead of opening the door."""
    path = tmp_path / "tokens"
    path.write_text("")
    with pytest.raises(Unauthenticated):
        Tokens(path).check("Bearer ", "read")
    with pytest.raises(ConfigError):
        Tokens(tmp_path / "nowhere")


def test_descriptors_and_scores_are_for_reading(guarded):
    """A reader may look things up and score; numbers of its own change nothing."""
    with Client(guarded.target, 10, security=Security(token="read")) as client:
        with pytest.raises(RequestFailed) as caught:
            client.score(np.zeros((1, 3), dtype=np.float32))
    assert caught.value.code == "FAILED_PRECONDITION"  # this model has no SVM: past the door
