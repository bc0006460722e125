"""Clients through bad times: a server that refuses, leaves, comes back or is one of several; a version that goes."""

import asyncio
import json
import re
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.fixtures.gates import eventually

from penult.client import AsyncClient, Client, Crop, RequestFailed
from penult.client.channel_options import address, service_config

DARK, BRIGHT = (Crop(np.full((8, 8, 3), level, dtype=np.uint8)) for level in (10, 230))


@pytest.mark.parametrize("several", [False, True], ids=["one", "two"])
def test_requests_are_spread_over_all_addresses(quick, start_server, samples, several):
    """Given two servers in one string or as a list, each answers half of the requests."""
    servers = [start_server(quick), start_server(quick)]
    targets = [server.target for server in servers]
    key = (
        "penult_requests_total", ("code", "OK"), ("method", "Classify"), ("model", "light"), ("version", "1"),
    )  # fmt: skip

    def counts() -> list[float]:
        return [samples(server.http).get(key, 0) for server in servers]

    with Client(targets if several else ",".join(targets)) as client:
        while not all(counts()):  # until there is a connection to the second, the first has everything
            client.classify([DARK])
        before = counts()
        for _ in range(40):
            client.classify([DARK])
    rose = [now - then for now, then in zip(counts(), before, strict=True)]
    assert sum(rose) == 40
    assert min(rose) >= 19


def test_a_server_that_dies_is_passed_over_and_taken_up_again(quick, start_server, samples):
    """Of two servers one is killed under load and started again on its port: no request fails, and both serve then."""
    stays, dies = start_server(quick), start_server(quick)
    port = dies.target.rpartition(":")[2]
    stop, failures, answers = threading.Event(), [], Counter()

    def ask() -> None:
        with Client([stays.target, dies.target], timeout_s=60) as client:
            while not stop.is_set():
                try:
                    answers[client.classify([BRIGHT]).results[0].label] += 1
                except RequestFailed as error:
                    failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    eventually(lambda: answers.total() > 20)
    dies.process.kill()
    dies.process.wait()
    before = answers.total()
    eventually(lambda: answers.total() > before + 20)
    again = start_server(quick, "--port", port)
    eventually(lambda: samples(again.http)["penult_batch_size_count",] > 20)
    stop.set()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert set(answers) == {"bright"}


@pytest.mark.parametrize("retries", [0, 4])
@pytest.mark.parametrize("kind", ["plain", "asyncio"])
def test_a_server_that_leaves_costs_no_request(quick, start_server, kind, retries):
    """SIGTERM under load, with a second server behind the same client: every request is answered, in both clients, and
    without retries too, since clients of several servers watch their health.
    """  # fmt: skip
    leaves, stays = start_server(quick, "--drain-lead", "1"), start_server(quick)
    targets, stop, failures, count = [leaves.target, stays.target], threading.Event(), [], Counter()

    def ask() -> None:
        with Client(targets, timeout_s=60, retries=retries) as client:
            while not stop.is_set():
                try:
                    count[client.classify([BRIGHT, DARK]).results[1].label] += 1
                except RequestFailed as error:
                    failures.append(error)

    async def ask_async() -> None:
        async with AsyncClient(targets, timeout_s=60, retries=retries) as client:
            while not stop.is_set():
                try:
                    count[(await client.classify([BRIGHT, DARK])).results[1].label] += 1
                except RequestFailed as error:
                    failures.append(error)

    act = ask if kind == "plain" else lambda: asyncio.run(ask_async())
    threads = [threading.Thread(target=act) for _ in range(6)]
    for thread in threads:
        thread.start()
    eventually(lambda: count.total() > 20)
    leaves.process.send_signal(signal.SIGTERM)
    assert leaves.process.wait(120) == 0
    before = count.total()
    eventually(lambda: count.total() > before + 20)
    stop.set()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert set(count) == {"dark"}


def test_a_full_server_is_asked_again_after_its_hint(quick, start_server, gate, samples):
    """Refused for a full queue, a client waits as told and is answered in the end; without retries it is refused."""
    server = start_server(quick, "--queue-max-images", "1", "--threads", "1", env=gate.env)
    refused = ("penult_dropped_total", ("reason", "queue_full"))
    answers = []

    def ask(retries: int) -> None:
        with Client(server.target, timeout_s=120, retries=retries) as client:
            answers.append(client.classify([DARK]).results[0].label)

    gate.shut()
    threads = [threading.Thread(target=ask, args=(retries,)) for retries in (0, 0, 4)]
    slow = threads.pop(0)
    slow.start()
    gate.wait_for(1)
    time.sleep(0.9)  # the server now takes an image to need so long, and hints at that
    gate.open()
    slow.join(120)
    gate.shut()
    threads[0].start()
    gate.wait_for(2)
    with pytest.raises(RequestFailed) as caught:
        ask(0)
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    threads[1].start()
    # A client on a busy machine may have been refused more than once by now.
    eventually(lambda: samples(server.http)[refused] >= 2)
    gate.open()
    for thread in threads:
        thread.join(120)
    assert answers == ["dark"] * 3


def test_a_call_with_nobody_there_ends():
    """With nobody there, a call ends by its deadline, and after its attempts where that is far off."""
    for timeout_s in (0.3, 3600):
        with Client("127.0.0.1:1", timeout_s=timeout_s) as client, pytest.raises(RequestFailed) as caught:
            client.classify([DARK])
        assert caught.value.code in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


def test_large_requests_are_tried_again_too(quick, start_server):
    """A request of several megabytes, more than gRPC keeps by default, moves on to the server that is left."""
    leaves, stays = start_server(quick), start_server(quick)
    large = np.full((1200, 1000, 3), 230, dtype=np.uint8)
    stop, failures, answered = threading.Event(), [], []

    def ask() -> None:
        with Client([leaves.target, stays.target], timeout_s=120) as client:
            while not stop.is_set():
                try:
                    client.classify([large])
                    answered.append(1)
                except RequestFailed as error:
                    failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(answered) > 6)
    leaves.process.send_signal(signal.SIGTERM)
    assert leaves.process.wait(120) == 0
    before = len(answered)
    eventually(lambda: len(answered) > before + 3)
    stop.set()
    for thread in threads:
        thread.join(120)
    assert failures == []


@pytest.mark.parametrize("wanted", [0, 1])
def test_a_version_that_goes_in_mid_call(publish_brightness, tmp_path, start_server, wanted):
    """A call of several chunks whose version is replaced begins anew, one answer from one version; unless it was asked
    for by number."""
    publish_brightness(tmp_path)
    server = start_server(tmp_path, "--watch-s", "0.1")

    class Swapped(list):
        """Photos that let a version be published, and the old one be gone, before the second chunk is read."""

        swaps = 1

        def __iter__(self):
            for place, photo in enumerate(super().__iter__()):
                if place == 70 and self.swaps:
                    Swapped.swaps -= 1
                    publish_brightness(tmp_path)
                    shutil.rmtree(tmp_path / "light" / "1")
                    with Client(server.target) as other:
                        while other.get_model().version.version != 2:
                            time.sleep(0.05)
                yield photo

    photos = Swapped([DARK] * 100)
    with Client(server.target) as client:
        if wanted:
            with pytest.raises(RequestFailed) as caught:
                client.classify(photos, model="light", version=wanted)
            assert caught.value.reason == "VERSION_UNKNOWN"
        else:
            answer = client.classify(photos, model="light")
            assert (answer.version, len(answer.results)) == (2, 100)
            assert {result.label for result in answer.results} == {"dark"}


def test_addresses_are_told_to_grpc_as_it_wants_them():
    """One name stays as it is; several are resolved, to one family; what is no address says so."""
    assert address("somewhere:1") == "somewhere:1"
    assert address("127.0.0.1:1, 127.0.0.2:2") == "ipv4:127.0.0.1:1,127.0.0.2:2"
    assert address(["[::1]:1", "[::1]:2"]) == "ipv6:[::1]:1,[::1]:2"
    assert address(["localhost:1", "127.0.0.2:2"]) == "ipv4:127.0.0.1:1,127.0.0.2:2"
    for wrong in ("", ",", "a,b", ["127.0.0.1:1", "[::1]:1"], ["127.0.0.1:1", "no.such.host.invalid:1"]):
        with pytest.raises(ValueError, match=r"HOST:PORT|IPv4|not known"):
            address(wrong)


def test_retries_are_what_grpc_can_do():
    """Zero retries leave no policy; more than gRPC's four are refused instead of being cut in silence."""
    assert "methodConfig" not in json.loads(service_config(0))
    assert "healthCheckConfig" not in json.loads(service_config(0))
    assert json.loads(service_config(0, is_one_of_several=True))["healthCheckConfig"] == {"serviceName": ""}
    assert json.loads(service_config(4))["methodConfig"][0]["retryPolicy"]["maxAttempts"] == 5
    with pytest.raises(ValueError, match="0 to 4"):
        Client("127.0.0.1:1", retries=5)


def test_the_service_config_that_other_languages_are_told_is_ours():
    """docs/client.md holds what our clients send, word for word as JSON."""
    page = (Path(__file__).parent.parent.parent / "docs" / "client.md").read_text()
    (block,) = re.findall(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert json.loads(block) == json.loads(service_config(4))
