"""TLS on both ports, with real handshakes: who gets in, who does not and is told why, and certificates that change."""

import hashlib
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import httpx
import pytest
from tests.fixtures.authority import Authority

from penult.client import Client, RequestFailed, Security, SecurityError

WAIT_S = 120


@pytest.fixture
def ours(tmp_path: Path):
    """The authority that the server's certificate is of."""
    return Authority(tmp_path / "ours")


@pytest.fixture
def served(ours):
    """The files that a server reads: they are replaced in the tests."""
    return ours.issue("server")


@pytest.fixture(scope="module")
def shared(quick, start_server, tmp_path_factory):
    """A server with TLS that several tests ask and leave as it is, and the authority of its certificate."""
    authority = Authority(tmp_path_factory.mktemp("tls") / "shared")
    return start_server(quick, *_options(authority.issue("server"))), authority


def _options(served, *more: str) -> list[str]:
    return ["--tls-cert", str(served.chain), "--tls-key", str(served.key), *more]


def _ask(target: str, photo: bytes, security: Security) -> str:
    with Client(target, 60, retries=0, security=security) as client:
        return client.classify([photo]).results[0].label


def _why(target: str, photo: bytes, security: Security) -> str:
    with pytest.raises(RequestFailed) as caught:
        _ask(target, photo, security)
    assert caught.value.code == "UNAVAILABLE"
    return caught.value.message


def _serial(address: str) -> str:
    """Return the certificate that a new connection is shown."""
    host, port = address.rsplit(":", 1)
    return ssl.get_server_certificate((host, int(port)))


def _eventually(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def _replace(target, source) -> None:
    """Put a certificate and its key where the server reads them, one after the other, as an operator does."""
    for to, new in zip(target, source, strict=True):
        scratch = to.with_suffix(".new")
        shutil.copyfile(new, scratch)
        scratch.rename(to)


def test_with_tls_only_those_who_speak_it_are_answered(encode, shared, tmp_path):
    """A client with the authority is answered; without TLS, or with another authority, one line says what to do."""
    (server, ours), photo = shared, encode(230)
    assert _ask(server.target, photo, Security(ca=ours.ca)) == "bright"
    assert "--tls" in _why(server.target, photo, Security())
    theirs = Authority(tmp_path / "theirs")
    assert "--ca" in _why(server.target, photo, Security(ca=theirs.ca))
    assert server.http.startswith("https://")
    assert httpx.get(f"{server.http}/readyz", verify=ssl.create_default_context(cafile=ours.ca)).text == "ready\n"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.http}/readyz", verify=ssl.create_default_context(cafile=theirs.ca))


def test_a_certificate_of_another_name_is_not_believed(quick, encode, start_server, ours):
    """A server that shows another host's certificate is refused, unless that name is what the client expects."""
    server = start_server(quick, *_options(ours.issue("other", hosts=("penult.example",))))
    photo = encode(230)
    _why(server.target, photo, Security(ca=ours.ca))
    assert _ask(server.target, photo, Security(ca=ours.ca, server_name="penult.example")) == "bright"


def test_with_mutual_tls_a_client_needs_a_certificate(quick, encode, start_server, ours, served, tmp_path):
    """A client's certificate of the authority lets in; none, and one of another authority, do not."""
    server, photo = start_server(quick, *_options(served, "--tls-client-ca", str(ours.ca))), encode(230)
    mine, theirs = ours.issue("mine"), Authority(tmp_path / "theirs").issue("theirs")
    assert _ask(server.target, photo, Security(ca=ours.ca, certificate=mine.chain, key=mine.key)) == "bright"
    _why(server.target, photo, Security(ca=ours.ca))
    _why(server.target, photo, Security(ca=ours.ca, certificate=theirs.chain, key=theirs.key))
    assert httpx.get(f"{server.http}/livez", verify=ssl.create_default_context(cafile=ours.ca)).text == "ok\n"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_old_tls_is_refused(shared):
    """TLS 1.1 gets no connection on either port, 1.2 and 1.3 do."""
    server, ours = shared
    for address in (server.target, server.http.removeprefix("https://")):
        for version, is_good in (
            (ssl.TLSVersion.TLSv1_1, False),
            (ssl.TLSVersion.TLSv1_2, True),
            (ssl.TLSVersion.TLSv1_3, True),
        ):
            context = ssl.create_default_context(cafile=ours.ca)
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = version
            context.set_alpn_protocols(["h2", "http/1.1"])
            host, port = address.rsplit(":", 1)
            with socket.create_connection((host, int(port))) as plain:
                if is_good:
                    context.wrap_socket(plain, server_hostname=host).close()
                else:
                    with pytest.raises(OSError):
                        context.wrap_socket(plain, server_hostname=host)


def test_a_renewed_certificate_is_taken_up_and_nobody_notices(quick, encode, start_server, ours, served, samples):
    """New connections meet the new certificate, of another kind of key even; no request fails; a broken one is ignored."""
    server, photo, security = start_server(quick, *_options(served)), encode(230), Security(ca=ours.ca)
    failures, asked, stopped = [], [], threading.Event()

    def ask(fresh: bool) -> None:
        client = Client(server.target, 60, retries=0, security=security)
        while not stopped.is_set():
            try:
                asked.append(client.classify([photo]).results[0].label)
                if fresh:  # every request over a connection of its own
                    client.close()
                    client = Client(server.target, 60, retries=0, security=security)
            except RequestFailed as error:
                failures.append(error)
        client.close()

    threads = [threading.Thread(target=ask, args=(fresh,)) for fresh in (False, True)]
    for thread in threads:
        thread.start()
    ports = server.target, server.http.removeprefix("https://")
    before = [_serial(port) for port in ports]
    assert before[0] == before[1] == served.chain.read_text()
    _replace(served, ours.issue("next", kind="rsa"))
    _eventually(lambda: [_serial(port) for port in ports] == [served.chain.read_text()] * 2)
    good = served.chain.read_text()
    assert good not in before

    served.chain.write_text(good[: len(good) // 2])
    verify = ssl.create_default_context(cafile=ours.ca)
    refused = "penult_credentials_reloads_total", ("kind", "certificate"), ("outcome", "refused")

    def counts() -> dict:
        from prometheus_client.parser import text_string_to_metric_families

        text = httpx.get(f"{server.http}/metrics", verify=verify).text
        return {
            (s.name, *sorted(s.labels.items())): s.value
            for f in text_string_to_metric_families(text)
            for s in f.samples
        }

    _eventually(lambda: counts().get(refused) == 1)
    assert [_serial(port) for port in ports] == [good] * 2
    assert 0 < counts()["penult_certificate_expiry_timestamp_seconds",] - time.time() < 8 * 86400
    _replace(served, ours.issue("last"))
    _eventually(lambda: _serial(ports[0]) == served.chain.read_text())
    stopped.set()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert set(asked) == {"bright"}
    assert len(asked) > 20


@pytest.mark.server
@pytest.mark.parametrize(
    "wrong", ["another key", "no key", "expired", "encrypted", "missing", "ed25519", "no authority"]
)
def test_what_cannot_work_ends_the_start_with_one_line(wrong, quick, ours, served, run_python, tmp_path):
    """Files that do not belong together, have ended, or are not there: the server does not start, and says why."""
    chain, key, more, words = served.chain, served.key, [], "cannot be used together"
    if wrong == "another key":
        key = ours.issue("other").key
    elif wrong == "no key":
        key = served.chain
    elif wrong == "expired":
        (chain, key), words = ours.issue("old", days=-2), "renew it"
    elif wrong == "encrypted":
        (chain, key), words = ours.issue("locked", passphrase=b"secret"), "without a passphrase"
    elif wrong == "ed25519":
        (chain, key), words = ours.issue("other-kind", kind="ed25519"), "use EC or RSA"
    elif wrong == "missing":
        chain, words = tmp_path / "nowhere.pem", "cannot be read"
    else:
        more, words = ["--tls-client-ca", str(served.key)], "holds no certificate"
    done = run_python("-m", "penult.cli", "serve", "--models", str(quick), "--port", "0", "--metrics-port", "0",
                      "--tls-cert", str(chain), "--tls-key", str(key), *more)  # fmt: skip
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("penult: ")
    assert words in line


def test_several_workers_have_it_too(quick, encode, start_server, ours, served):
    """With --workers 2, all answer over TLS, and a renewed certificate reaches them all and their supervisor."""
    server = start_server(quick, *_options(served, "--workers", "2"))
    photo, security = encode(230), Security(ca=ours.ca)
    assert {_ask(server.target, photo, security) for _ in range(8)} == {"bright"}
    _replace(served, ours.issue("next"))
    new = served.chain.read_text()
    ports = [server.target] * 8 + [server.http.removeprefix("https://")]
    _eventually(lambda: {_serial(port) for port in ports} == {new})


def test_sighup_takes_up_at_once(quick, start_server, ours, served):
    """SIGHUP reads certificates again without waiting for a second look, and ends nothing."""
    server = start_server(quick, *_options(served))
    _replace(served, ours.issue("next"))
    server.process.send_signal(signal.SIGHUP)
    _eventually(lambda: _serial(server.target) == served.chain.read_text())
    assert "SIGHUP" in server.log.read_text()
    assert server.process.poll() is None


def test_http_may_stay_plain(quick, encode, start_server, ours, served):
    """--no-http-tls leaves the HTTP port as it was, for scrapers and probes of a cluster that has a mesh of its own."""
    server = start_server(quick, *_options(served, "--no-http-tls"))
    assert httpx.get(f"{server.http}/readyz").text == "ready\n"
    assert _ask(server.target, encode(230), Security(ca=ours.ca)) == "bright"


def test_an_open_address_is_warned_of(quick, start_server, served):
    """Listening beyond loopback without TLS, or without asking who calls, is said in the log; with both, nothing is."""
    open_ = start_server(quick, "--host", "0.0.0.0", "--model-control", "on")
    log = open_.log.read_text()
    assert "without TLS" in log
    assert "models can be loaded and unloaded too" in log
    assert "without TLS" not in start_server(quick).log.read_text()


def test_the_standard_client_connects(shared):
    """grpc's own channel and the health protocol, with nothing of penult's client, work over TLS."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    server, ours = shared
    credentials = grpc.ssl_channel_credentials(ours.ca.read_bytes())
    with grpc.secure_channel(server.target, credentials) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=120)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_tritonclient_connects_too(quick, start_server, ours, served, triton_python, tmp_path):
    """The unmodified tritonclient, told of the authority and given a token, is answered over TLS; without, refused."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"triton read {hashlib.sha256(b'secret').hexdigest()}\n")
    server = start_server(quick, *_options(served, "--tokens", str(tokens)))
    code = f"""
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException
with triton.InferenceServerClient({server.target!r}, ssl=True, root_certificates={str(ours.ca)!r}) as client:
    print(client.is_server_ready())
    print(client.get_model_metadata("light", headers={{"authorization": "Bearer secret"}}).name)
    try:
        client.get_model_metadata("light")
    except InferenceServerException as error:
        print(error.status())
"""
    done = subprocess.run([triton_python, "-P", "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["True", "light", "StatusCode.UNAUTHENTICATED"], done.stderr


@pytest.mark.parametrize("is_mutual", [False, True])
def test_a_containers_health_check_speaks_tls(is_mutual, quick, start_server, ours, run_python, tmp_path):
    """`python -m penult.client.health` knows the server by the certificate that it was given; another one fails it."""
    served = ours.issue("pod", hosts=("penult.example",))
    more = {"PENULT_TLS_CLIENT_CA": str(ours.ca)} if is_mutual else {}
    server = start_server(quick, *_options(served), env=more)
    env = {"PENULT_PORT": server.target.rsplit(":", 1)[1], "PENULT_TLS_CERT": str(served.chain),
           "PENULT_TLS_KEY": str(served.key), **more}  # fmt: skip
    done = run_python("-m", "penult.client.health", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    other = ours.issue("other", hosts=("penult.example",))
    wrong = env | {"PENULT_TLS_CERT": str(other.chain), "PENULT_TLS_KEY": str(other.key)}
    assert run_python("-m", "penult.client.health", env=wrong).returncode == 1


def test_a_client_is_told_what_it_lacks(tmp_path: Path, ours):
    """A certificate without its key, a file that is not there: one line each, before anything is sent."""
    for security in (Security(certificate=ours.ca), Security(ca=tmp_path / "nowhere")):
        with pytest.raises(SecurityError) as caught:
            Client("127.0.0.1:1", security=security)
        assert "\n" not in caught.value.message
