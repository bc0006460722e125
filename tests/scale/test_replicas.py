"""Three replicas behind each arrangement that docs/proxies.md names: one dies, one leaves, one comes back."""

from contextlib import ExitStack

from tests.scale.fleet import Load, asker, wait_for

from penult.client import Client

FAIR_SHARE = 0.15


def test_killed(fleet, ways, photo):
    """One of three dies under load: no caller with retries meets a failure, and once back it is asked again."""
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(way.target)) for way in ways.values()]
        loads = [stack.enter_context(Load(asker(client, photo))) for client in clients]
        fleet.kill(0)
        for load in loads:
            load.wait_for(200)
        fleet.start(0)
        wait_for(lambda: fleet.served(0) > 50, "the replica that came back is asked")
    assert {name: load.failures for name, load in zip(ways, loads, strict=True)} == {name: [] for name in ways}


def test_spread(fleet, ways, photo):
    """Requests over one client's connections are spread: each of three replicas gets a fair share."""
    for name, way in ways.items():
        before = [fleet.served(place) for place in range(3)]
        with Client(way.target, retries=0) as client, Load(asker(client, photo)) as load:
            load.wait_for(300)
        shares = [fleet.served(place) - before[place] for place in range(3)]
        print(f"{name}: requests by replica {shares}, most ÷ least {max(shares) / max(1, min(shares)):.2f}")
        assert load.failures == []
        assert sum(shares) == load.answers
        assert min(shares) > FAIR_SHARE * sum(shares)


def test_drained(fleet, ways, photo):
    """One of three leaves under load: no caller meets a failure, with retries or without."""
    with ExitStack() as stack:
        loads = {}
        for name, way in ways.items():
            for told, retries in (("", 4), (", no retries", 0)):
                client = stack.enter_context(Client(way.target, retries=retries))
                loads[name + told] = stack.enter_context(Load(asker(client, photo)))
        for way in ways.values():
            way.prepare_to_drain(1)
        fleet.drain(1)
        for load in loads.values():
            load.wait_for(100)
    assert {name: load.failures for name, load in loads.items()} == {name: [] for name in loads}
