"""kill -9 of a server that stores items or feedback, and a full disk: what was acknowledged is there afterwards."""

import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.attacks import good_bundle
from tests.attacks.bystander import wait_for

from penult.bundle.manifest import Manifest
from penult.bundle.reader import read_bundle
from penult.bundle.writer import publish
from penult.client import Client, ItemFailure, NewItem, RequestFailed, Truth

# `make kills`: a hundred.
KILLS = int(os.environ.get("PENULT_KILLS", "3"))
BATCH = 20
COLLECTION = "seen"


def descriptor(id_: str) -> np.ndarray:
    """The descriptor that belongs to an id."""
    return np.random.default_rng([ord(c) for c in id_]).normal(size=good_bundle.LENGTH).astype(np.float32)


def batch(number: int, thumbnail: bytes = b"") -> list[NewItem]:
    """So many items that nothing else holds."""
    ids = [f"{number}-{n}" for n in range(BATCH)]
    return [NewItem(id_, descriptor=descriptor(id_), label=f"batch {number}", thumbnail=thumbnail) for id_ in ids]


def everything(client: Client) -> dict[str, np.ndarray]:
    """Return all stored items, page by page, with their descriptors."""
    found, after = {}, ""
    while page := client.get_items(COLLECTION, after=after, limit=1000, descriptors=True):
        found |= {item.id: item.descriptor for item in page}
        after = page[-1].id
    return found


@pytest.fixture(scope="module")
def light(tmp_path_factory) -> Path:
    """A repository with a good bundle."""
    root = tmp_path_factory.mktemp("repository")
    good_bundle.make(root)
    return root


def put_until_it_fails(target: str, first: int, acknowledged: list[int]) -> None:
    """Store batch after batch, and note those that the server said it has."""
    with Client(target) as client:
        while True:
            try:
                assert set(client.put_items(COLLECTION, batch(first))) == {None}
            except RequestFailed:
                return
            acknowledged.append(first)
            first += 1


@pytest.mark.timeout(3600)
def test_a_killed_server_has_what_it_acknowledged(light, start_server, tmp_path):
    """Killed in the midst of storing, a server started again has every acknowledged item, and whole batches."""
    chance, acknowledged = random.Random(3), list[int]()
    for kill in range(KILLS + 1):
        server = start_server(light, "--lookup", str(tmp_path / "lookup"), "--cpu-mode", "throughput")
        with Client(server.target) as client:
            found = everything(client) if kill else {}
        counts: dict[int, int] = {}
        for id_, vector in found.items():
            assert vector.tobytes() == descriptor(id_).tobytes()
            counts[int(id_.split("-")[0])] = counts.get(int(id_.split("-")[0]), 0) + 1
        assert set(counts.values()) <= {BATCH}
        assert set(acknowledged) <= set(counts)
        unsaid = set(counts) - set(acknowledged)
        if kill == KILLS:
            break
        first, enough = max(counts, default=0) + 1, len(acknowledged) + chance.randint(1, 40)
        thread = threading.Thread(target=put_until_it_fails, args=(server.target, first, acknowledged))
        thread.start()
        wait_for(lambda enough=enough: len(acknowledged) >= enough)
        time.sleep(chance.uniform(0, 0.02))
        server.process.kill()
        server.process.wait()
        thread.join(60)
        assert not thread.is_alive()
    print(
        f"\n{KILLS} kills, {len(acknowledged)} batches of {BATCH} acknowledged, {len(unsaid)} stored as the kill came"
    )
    assert len(acknowledged) >= KILLS


VERDICTS, AT_ONCE = 1000, 20


def _said(number: int) -> Truth:
    """The verdict with this number, about an answer of its own: one in three is right."""
    label = good_bundle.CLASSES[number % 3]
    return Truth(label, request_id=f"{number:016x}", model="light", version=1, answered=good_bundle.CLASSES[0])


def _judge_until_it_fails(target: str, acknowledged: list[int]) -> None:
    """Send the verdicts that nothing has acknowledged yet, in order, and note those that the server acknowledges."""
    with Client(target, retries=0) as client:
        while len(acknowledged) < VERDICTS:
            batch = range(len(acknowledged), min(len(acknowledged) + AT_ONCE, VERDICTS))
            try:
                results = client.feedback([_said(number) for number in batch])
            except RequestFailed:
                return
            assert not any(isinstance(each, ItemFailure) for each in results)
            acknowledged.extend(batch)


def _counted(samples: Callable[[str], dict[tuple, float]], http: str) -> Counter[str]:
    found = samples(http)
    return Counter(
        {dict(key[1:])["outcome"]: round(value) for key, value in found.items() if key[0] == "penult_feedback_total"}
    )


@pytest.mark.timeout(3600)
def test_a_killed_server_has_the_verdicts_that_it_acknowledged(light, start_server, samples, tmp_path):
    """Of 1,000 verdicts with kill -9 amid them none is lost or counted twice, and metrics are what the client counts."""
    chance, acknowledged, folder = random.Random(5), list[int](), tmp_path / "feedback"

    def expected(count: int) -> Counter[str]:
        return Counter("wrong" if number % 3 else "right" for number in range(count))

    for kill in range(KILLS + 1):
        server = start_server(light, "--feedback", str(folder))
        counted = _counted(samples, server.http).total()
        assert len(acknowledged) <= counted <= len(acknowledged) + AT_ONCE  # the last batch may have been stored
        enough = len(acknowledged) + chance.randint(1, VERDICTS // (KILLS + 1))
        thread = threading.Thread(target=_judge_until_it_fails, args=(server.target, acknowledged))
        thread.start()
        if kill < KILLS:
            wait_for(lambda enough=enough: len(acknowledged) >= enough)
            server.process.kill()
            server.process.wait()
        thread.join(60)
        assert not thread.is_alive()
    assert len(acknowledged) == VERDICTS
    assert _counted(samples, server.http) == expected(VERDICTS)
    server.process.kill()
    server.process.wait()
    again = start_server(light, "--feedback", str(folder))
    assert _counted(samples, again.http) == expected(VERDICTS)
    found = samples(again.http)
    live = found["penult_live_accuracy", ("model", "light"), ("version", "1")]
    assert live == pytest.approx(expected(VERDICTS)["right"] / VERDICTS)
    assert len((folder / "feedback.jsonl").read_bytes().splitlines()) == VERDICTS


def _limit(process: subprocess.Popen, bytes_: int) -> None:
    """Let no file of a process grow above so many bytes, as a disk does that is full."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (bytes_, resource.RLIM_INFINITY))


def _refused(client: Client, number: int) -> RequestFailed:
    with pytest.raises(RequestFailed) as caught:
        while True:
            client.put_items(COLLECTION, batch(number, bytes(45_000)))
            number += 1
    return caught.value


def _survives_a_full_disk(server, fill, clear) -> None:
    """Store, fill the disk, be refused honestly, be answered meanwhile, find all of it; store again when there is room."""
    with Client(server.target) as client:
        client.put_items(COLLECTION, batch(1))
        fill()
        error = _refused(client, 100)
        assert (error.code, error.reason) == ("UNAVAILABLE", "STORE_WRITE")
        before = everything(client)
        assert {item.id for item in batch(1)} <= set(before)
        assert {id_.split("-")[1] for id_ in before} == {str(n) for n in range(BATCH)}
        assert len(before) % BATCH == 0
        found = client.lookup(descriptor("1-0")[None], COLLECTION, k=1)
        assert found.results[0][0].id == "1-0"
        assert httpx.get(f"{server.http}/readyz").status_code == 200
        clear()
        client.put_items(COLLECTION, batch(2))
        assert set(everything(client)) == set(before) | {item.id for item in batch(2)}


def test_a_server_whose_files_cannot_grow_goes_on(light, start_server, tmp_path):
    """Where files may grow no further, an add is UNAVAILABLE with a reason, nothing is lost, and later adds succeed."""
    server = start_server(light, "--lookup", str(tmp_path / "lookup"))
    _survives_a_full_disk(
        server,
        lambda: _limit(server.process, 2 << 20),
        lambda: _limit(server.process, resource.RLIM_INFINITY),
    )


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 8 MB of its own; skips where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=8m", "penult-test", folder], capture_output=True, timeout=20, check=False
    )
    if not made or made.returncode:
        pytest.skip("needs the right to mount a small tmpfs, as root has outside of most containers")
    yield folder
    subprocess.run(["umount", "--lazy", folder], timeout=20, check=True)


def test_a_server_on_a_full_disk_goes_on(light, start_server, small_disk):
    """On a disk that is really full, an add is UNAVAILABLE with a reason, nothing is lost, and later adds succeed."""
    server = start_server(light, "--lookup", str(small_disk / "lookup"))
    ballast = small_disk / "ballast"

    def fill() -> None:
        with ballast.open("wb") as file:
            file.write(bytes(6 << 20))

    try:
        _survives_a_full_disk(server, fill, ballast.unlink)
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)


def test_publishing_on_a_full_disk_leaves_nothing(light, small_disk):
    """A bundle that does not fit is an OSError, and leaves the versions before it and nothing else; then there is room."""
    source = light / "light" / "1"
    manifest = Manifest.from_json((source / "manifest.json").read_bytes())
    files = {name: (source / name).read_bytes() for name in manifest.files}
    publish(small_disk / "light", manifest, files)
    for size in (9 << 20, (8 << 20) - 20_000):
        with pytest.raises(OSError, match="No space left"):
            publish(small_disk / "light", manifest, files | {"padding": bytes(size)})
        assert [entry.name for entry in (small_disk / "light").iterdir()] == ["1"]
        assert read_bundle(small_disk / "light").version == 1
    assert publish(small_disk / "light", manifest, files).name == "2"
    assert read_bundle(small_disk / "light").version == 2
