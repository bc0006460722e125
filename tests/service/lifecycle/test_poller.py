"""A repository that lives: versions come and go under a running server, and nobody who asks notices."""

import asyncio
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from tests.fixtures.gates import eventually

from penult.client import AsyncClient, ClassifyAnswer, Client, Crop, RequestFailed
from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc

WATCH = ("--watch-s", "0.1")
BRIGHT = Crop(np.full((8, 8, 3), 230, dtype=np.uint8))


def next_looks(server) -> None:
    """Wait until the repository has been looked at twice more."""
    time.sleep(0.5)


@pytest.fixture
def light(publish_brightness, tmp_path) -> Path:
    """A model folder, light, that holds version 1."""
    publish_brightness(tmp_path)
    return tmp_path / "light"


@pytest.fixture
def serve(start_server, connect):
    """Serve a repository that is watched closely: the server and its methods."""

    def start(root: Path, *options: str, env: dict[str, str] | None = None):
        server = start_server(root, *WATCH, *options, env=env)
        return server, penult_pb2_grpc.PenultServiceStub(connect(server.target))

    return start


@pytest.fixture
def version_of(request_of, encode):
    """Ask which version answers: version_of(stub, model="light", version=0)."""

    def ask(stub, name: str = "light", version: int = 0) -> int:
        selector = pb.ModelSelector(name=name, version=version)
        answer = stub.Classify(request_of(encode(230), model=selector))
        assert answer.results[0].classification.label == "bright"
        return answer.model.version

    return ask


@pytest.fixture
def offer(publish_brightness, tmp_path_factory):
    """offer(root, version, spoil, **options): a version that is there all at once, spoilt before it can be looked at."""

    def make(root: Path, version: int, spoil: Callable[[Path], object] = lambda folder: None, **options) -> Path:
        staged = publish_brightness(tmp_path_factory.mktemp("staged"), **options)
        spoil(staged)
        return staged.rename(root / "light" / str(version))

    return make


def refusals(server) -> list[str]:
    """Return what the log says of refused candidates."""
    return [line for line in server.log.read_text().splitlines() if "refused light" in line]


def flip_a_byte(folder: Path) -> None:
    """Damage the network."""
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)


BREAK: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped byte": (flip_a_byte, "FILE_DIGEST"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "MANIFEST_MISSING"),
    "cut manifest": (lambda folder: (folder / "manifest.json").write_text("{"), "MANIFEST_INVALID"),
    "no goldens": (lambda folder: (folder / "golden.npz").unlink(), "FILE_MISSING"),
    "extra file": (lambda folder: (folder / "extra.py").write_text(""), "FILE_UNLISTED"),
    "link": (lambda folder: (folder / "notes").symlink_to("/etc/hostname"), "FILE_UNLISTED"),
}


def test_a_new_version_is_taken_up_and_the_old_one_goes(light, serve, publish_brightness, version_of, samples, failure):
    """A published version answers within seconds; the old one is no longer found; metrics and log tell of both."""
    server, stub = serve(light.parent)
    assert version_of(stub) == 1
    publish_brightness(light.parent)
    eventually(lambda: version_of(stub) == 2)
    error = failure(lambda: version_of(stub, version=1))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    eventually(lambda: "light version 1 is no longer served" in server.log.read_text())
    found = samples(server.http)
    assert found["penult_reloads_total", ("outcome", "loaded")] == 2
    assert found["penult_reloads_total", ("outcome", "retired")] == 1
    assert found["penult_reloads_total", ("outcome", "refused")] == 0
    assert [dict(key[1:])["version"] for key in found if key[0] == "penult_model_info"] == ["2"]


@pytest.mark.parametrize("how", BREAK)
def test_a_broken_candidate_leaves_the_old_version_serving(light, serve, offer, version_of, samples, run_python, how):
    """A broken version is refused once, with one line and `penult check`'s reason, and a metric; version 1 answers."""
    damage, reason = BREAK[how]
    server, stub = serve(light.parent)
    offer(light.parent, 2, damage)
    eventually(lambda: refusals(server))
    next_looks(server)  # it is not tried again while nothing changes
    (line,) = refusals(server)
    assert line.endswith(f"({reason})")
    assert samples(server.http)["penult_reloads_total", ("outcome", "refused")] == 1
    assert version_of(stub) == 1
    assert httpx.get(f"{server.http}/readyz").status_code == 200
    checked = run_python("-m", "penult.cli", "check", str(light))
    assert checked.returncode == 1
    said = re.search(r"refused light version 2: (.*)", line).group(1)
    assert checked.stderr.strip() == f"penult: {said}"


def test_a_repaired_candidate_is_taken_up(light, serve, offer, version_of):
    """A version that was refused is tried again once its files have changed, and serves if it is good then."""
    server, stub = serve(light.parent)
    folder = offer(light.parent, 2, flip_a_byte)
    eventually(lambda: refusals(server))
    assert version_of(stub) == 1
    flip_a_byte(folder)
    eventually(lambda: version_of(stub) == 2)
    assert len(refusals(server)) == 1


def test_a_slow_copy_is_not_refused(light, serve, version_of):
    """A version that is copied file by file, with pauses shorter than between looks, is waited for."""
    server, stub = serve(light.parent, "--watch-s", "0.4")
    target = light / "2"
    target.mkdir()
    for path in sorted((light / "1").iterdir(), reverse=True):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, target / path.name)
        time.sleep(0.15)
    eventually(lambda: version_of(stub) == 2)
    assert refusals(server) == []


def test_removing_the_newest_version_goes_back(light, serve, publish_brightness, version_of):
    """Without its folder a version goes, and the one before it serves again; a new one may take the same number."""
    publish_brightness(light.parent)
    server, stub = serve(light.parent)
    assert version_of(stub) == 2
    # One step: rmtree deletes the manifest first, and a poll in between would rightly log a folder without one.
    (light / "2").rename(light.parent.with_name(f"{light.parent.name}-removed"))
    eventually(lambda: version_of(stub) == 1)  # each of these requests must be answered
    publish_brightness(light.parent)
    eventually(lambda: version_of(stub) == 2)
    assert refusals(server) == []


def test_a_version_replaced_under_its_number_is_taken_up(light, serve, publish_brightness, encode, request_of):
    """Where a folder is exchanged for another bundle, the new one answers, with its own fingerprint."""
    _, stub = serve(light.parent)
    before = stub.Classify(request_of(encode(230))).model.fingerprint
    other = publish_brightness(light.parent.parent / "other", work=1)  # another network, so another fingerprint
    shutil.rmtree(light / "1")
    other.rename(light / "1")
    eventually(lambda: stub.Classify(request_of(encode(230))).model.fingerprint != before)
    assert stub.Classify(request_of(encode(230))).model.version == 1


def test_touching_files_reloads_nothing(light, serve, version_of, samples):
    """Files that get a new date, as from a backup, are seen to be the same bundle."""
    server, stub = serve(light.parent)
    for path in (light / "1").rglob("*"):
        path.touch()
    next_looks(server)
    assert version_of(stub) == 1
    assert samples(server.http)["penult_reloads_total", ("outcome", "loaded")] == 1


def test_models_come_and_go(light, serve, publish_brightness, version_of, failure):
    """A new model's folder is served beside the others; without it, the model is NOT_FOUND again."""
    _, stub = serve(light.parent)
    publish_brightness(light.parent, "other")

    def served() -> list[str]:
        return [f"{m.version.name}/{m.version.version}" for m in stub.ListModels(pb.ListModelsRequest()).models]

    eventually(lambda: served() == ["light/1", "other/1"])
    assert version_of(stub, "other") == 1
    shutil.rmtree(light.parent / "other")
    eventually(lambda: served() == ["light/1"])
    assert failure(lambda: version_of(stub, "other")).code() is grpc.StatusCode.NOT_FOUND


def test_without_any_model_the_server_is_not_ready(light, serve, publish_brightness, version_of, failure):
    """When the last model is removed, readiness goes and requests are UNAVAILABLE; the next model brings both back."""
    server, stub = serve(light.parent)
    shutil.rmtree(light)
    eventually(lambda: httpx.get(f"{server.http}/readyz").status_code == 503)
    error = failure(lambda: version_of(stub))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(error.trailing_metadata())["penult-reason"] == "NO_MODELS"
    assert httpx.get(f"{server.http}/livez").status_code == 200
    publish_brightness(light.parent)
    eventually(lambda: httpx.get(f"{server.http}/readyz").status_code == 200)
    assert version_of(stub) == 1


def test_a_repository_that_vanishes_for_a_while_changes_nothing(light, serve, version_of):
    """While the whole folder is away, as an unmounted disk is, what is loaded serves on, with one line in the log."""
    server, stub = serve(light.parent)
    away = light.parent.with_name("away")
    light.parent.rename(away)
    eventually(lambda: "cannot be read" in server.log.read_text())
    next_looks(server)
    assert version_of(stub) == 1
    assert server.log.read_text().count("cannot be read") == 1
    away.rename(light.parent)
    assert version_of(stub) == 1


def test_pinned_versions_stay(light, serve, publish_brightness, version_of, failure):
    """Of a pinned model exactly the pinned versions serve, each by its number, the newest of them by default."""
    for _ in range(3):
        publish_brightness(light.parent)
    server, stub = serve(light.parent, "--pin", "light=1,light=3,light=9")
    assert [version_of(stub, version=v) for v in (0, 1, 3)] == [3, 1, 3]
    publish_brightness(light.parent)
    next_looks(server)
    assert version_of(stub) == 3
    assert failure(lambda: version_of(stub, version=4)).code() is grpc.StatusCode.NOT_FOUND
    assert server.log.read_text().count("light version 9 is pinned, and not there") == 1


def test_requests_under_way_end_with_the_version_they_began_with(
    light, serve, gate, publish_brightness, encode, request_of
):
    """A request that began before a swap is answered by the old version, after the new one answers already."""
    server, stub = serve(light.parent, "--threads", "2", env=gate.env)
    gate.shut()
    under_way = stub.Classify.future(request_of(encode(230)), timeout=120)
    gate.wait_for(1)
    publish_brightness(light.parent)
    eventually(lambda: stub.GetModel(pb.GetModelRequest()).model.version.version == 2)
    assert not under_way.done()
    assert "version 1 is no longer served" not in server.log.read_text()
    gate.open()
    assert under_way.result().model.version == 1
    eventually(lambda: "light version 1 is no longer served" in server.log.read_text())


@dataclass
class Load:
    """Clients that ask without pause, two threads and as many asyncio tasks, and what they were answered."""

    targets: list[str]
    answers: Counter[tuple[int, str]] = field(default_factory=Counter)
    failures: list[Exception] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def note(self, answer: ClassifyAnswer) -> None:
        """Count an answer to a bright photo under the version that it names."""
        self.answers[answer.version, answer.results[0].label] += 1

    def ask(self) -> None:
        """Ask through the plain client."""
        with Client(self.targets, timeout_s=60) as client:
            while not self.stop.is_set():
                try:
                    self.note(client.classify([BRIGHT]))
                except RequestFailed as error:
                    self.failures.append(error)

    def ask_asyncio(self) -> None:
        """Ask through the asyncio client, two at a time."""

        async def on(client: AsyncClient) -> None:
            while not self.stop.is_set():
                try:
                    self.note(await client.classify([BRIGHT]))
                except RequestFailed as error:
                    self.failures.append(error)

        async def whole() -> None:
            async with AsyncClient(self.targets, timeout_s=60) as client:
                await asyncio.gather(*(on(client) for _ in range(2)))

        asyncio.run(whole())

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ask for as long as this lasts."""
        threads = [threading.Thread(target=act) for act in (*[self.ask] * 2, self.ask_asyncio)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for thread in threads:
                thread.join(120)
        assert not any(thread.is_alive() for thread in threads)


def test_nobody_notices_versions_that_come_and_a_leaving_server(serve, offer, tmp_path, samples):
    """Load while 10 versions come, 5 broken in five ways, then SIGTERM to one of two servers: nothing fails.

    Every answer's label is one that only the version named in the answer has.
    """

    def publish(version: int, spoil: Callable[[Path], object] = lambda folder: None) -> None:
        offer(tmp_path, version, spoil, classes=(f"dark-{version}", f"bright-{version}"))

    (tmp_path / "light").mkdir()
    publish(1)
    servers = [serve(tmp_path)[0], serve(tmp_path)[0]]
    load = Load([server.target for server in servers])
    broken = dict(zip((2, 4, 6, 8, 10), list(BREAK.values())[:5], strict=True))
    with load.running():
        for version in range(2, 12):
            if version in broken:
                publish(version, broken[version][0])
                eventually(lambda count=version // 2: all(len(refusals(server)) == count for server in servers))
            else:
                publish(version)
                eventually(lambda key=(version, f"bright-{version}"): load.answers[key])
        servers[0].process.terminate()
        assert servers[0].process.wait(120) == 0
        answered = load.answers.total()
        eventually(lambda: load.answers.total() > answered + 20)
    assert load.failures == []
    assert {label for version, label in load.answers if label != f"bright-{version}"} == set()
    seen = {version for version, _ in load.answers}
    assert not seen & set(broken)
    assert seen == set(range(1, 12)) - set(broken)
    reasons = [line.rpartition("(")[2].rstrip(")") for line in refusals(servers[1])]
    assert reasons == [reason for _, reason in broken.values()]
    found = samples(servers[1].http)
    assert found["penult_queue_depth",] == 0
    assert found["penult_reloads_total", ("outcome", "refused")] == 5


@pytest.mark.parametrize("value", ["light", "light=", "light=0", "li ght=1", "light=x", "../a=1"])
def test_a_pin_that_is_none_is_refused(value):
    """--pin takes NAME=VERSION and says so."""
    from penult.service.config import ServeConfig
    from penult.service.errors import ConfigError

    with pytest.raises(ConfigError, match="NAME=VERSION"):
        ServeConfig(pin=value)
