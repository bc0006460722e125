"""Fairness between clients: turns, shares, and a server that one of them floods."""

import hashlib
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
import pytest
from tests.fixtures.gates import eventually

from penult.service.inference.admission import AdmissionControl
from penult.service.inference.fair_queue import FairExecutor, FairQueue
from penult.v1 import penult_pb2_grpc


def test_clients_take_turns_each_in_order():
    """Whoever comes late with one entry waits for one of each other client's, not for all of them."""
    turns: FairQueue[str] = FairQueue()
    turns.add("a", ["a1", "a2", "a3"])
    turns.add("b", ["b1"])
    assert turns.next() == "a1"
    assert turns.take() == "a1"
    turns.add("c", ["c1", "c2"])
    turns.add("a", ["a4"])
    assert len(turns) == 6
    assert [turns.take() for _ in range(6)] == ["b1", "a2", "c1", "a3", "c2", "a4"]
    assert len(turns) == 0


def test_nothing_is_lost_and_nobody_overtakes_himself():
    """Whatever is added and taken in whatever order, each client's entries come out once and in order."""
    chance, turns, added, taken = random.Random(1), FairQueue(), Counter(), {}
    for _ in range(5000):
        if len(turns) == 0 or chance.random() < 0.5:
            client, amount = chance.choice("abcd"), chance.randrange(4)
            turns.add(client, [(client, added[client] + n) for n in range(amount)])
            added[client] += amount
        else:
            client, number = turns.take()
            taken.setdefault(client, []).append(number)
    while len(turns):
        client, number = turns.take()
        taken[client].append(number)
    assert taken == {client: list(range(count)) for client, count in added.items()}


def test_a_pool_runs_clients_in_turn_and_passes_over_what_was_cancelled():
    """On one thread, a client's first task runs after one of each other's; a cancelled one never does."""
    hold, order = threading.Event(), []
    with ThreadPoolExecutor(1) as threads:
        pool = FairExecutor(threads)
        pool.submit("x", hold.wait)
        flood = [pool.submit("flood", partial(order.append, n)) for n in range(5)]
        failing = pool.submit("late", lambda: 1 / 0)
        late = pool.submit("late", partial(order.append, "late"))
        flood[1].cancel()
        hold.set()
        late.result(10)
    assert order == [0, "late", 2, 3, 4] or order == [0, 2, "late", 3, 4]
    with pytest.raises(ZeroDivisionError):
        failing.result()


def test_one_client_leaves_room_for_others():
    """A client alone may have eight ninths of the places; several share nearly all; a newcomer still gets in."""
    shares = AdmissionControl(100)
    while shares.fits("flood", 1):
        shares.add("flood", 1)
    assert shares.total == 88
    for name in ("b", "c"):
        while shares.fits(name, 1):
            shares.add(name, 1)
    assert 95 < shares.total < 100
    assert shares.fits("newcomer", 1)
    shares.remove("flood", 88)
    assert shares.fits("b", 5)


def test_whoever_is_nobody_in_particular_may_have_it_all():
    """Calls without a client, as from within, are bounded by the whole only."""
    shares = AdmissionControl(10)
    shares.add("", 9)
    assert shares.fits("", 1)
    assert not shares.fits("", 2)


def test_what_is_ahead_counts_turns():
    """A newcomer waits for one turn of each, a flood for itself."""
    shares = AdmissionControl(1000)
    shares.add("flood", 500)
    assert shares.ahead("newcomer") == 1
    shares.add("newcomer", 1)
    assert shares.ahead("newcomer") == 4
    assert shares.ahead("flood") == 501
    assert shares.ahead("") == 501


def test_a_flood_does_not_starve_others(quick, tmp_path, start_server, gate, connect, request_of, encode, samples):
    """While one caller's photos fill the queue of a server, another's are answered after one turn each."""
    tokens = tmp_path / "tokens"
    names = ("flood", "other")
    tokens.write_text("".join(f"{name} read {hashlib.sha256(name.encode()).hexdigest()}\n" for name in names))
    options = ("--tokens", str(tokens), "--threads", "1", "--batch-max-images", "1", "--queue-max-images", "200")
    server, photo = start_server(quick, *options, env=gate.env), encode(230)

    def classify(name: str, images: int):
        methods = penult_pb2_grpc.PenultServiceStub(connect(server.target))
        metadata = (("authorization", f"Bearer {name}"),)
        return methods.Classify.future(request_of(*[photo] * images), metadata=metadata, timeout=120)

    def waiting() -> float:
        return samples(server.http)["penult_queue_depth",]

    ended = []
    gate.shut()
    floods = [classify("flood", 16) for _ in range(14)]
    gate.wait_for(1)
    eventually(lambda: waiting() == 16 * sum(not call.done() for call in floods) - 1)
    admitted = [call for call in floods if not call.done()]
    assert {call.code() for call in floods if call not in admitted} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    before, other = waiting(), classify("other", 6)
    eventually(lambda: waiting() == before + 6)
    for call, name in [*((call, "flood") for call in admitted), (other, "other")]:
        call.add_done_callback(lambda _, name=name: ended.append(name))
    gate.open()
    assert [result.classification.label for result in other.result().results] == ["bright"] * 6
    eventually(lambda: len(ended) == len(admitted) + 1)
    # In the order of arrival it would have been the last of more than a dozen.
    assert ended.index("other") < 3
