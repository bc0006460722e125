"""Three replicas behind each arrangement that docs/proxies.md names: one dies, one leaves, one comes back."""

from fleet import Load, asker, wait_for

from penult.client import Client

FAIR_SHARE = 0.15


def test_killed(fleet, way, photo):
    """One of three dies under load: no caller with retries meets a failure, and once back it is asked again."""
    with Client(way.target) as client, Load(asker(client, photo)) as load:
        fleet.kill(0)
        load.wait_for(200)
        fleet.start(0)
        wait_for(lambda: fleet.served(0) > 20, "the replica that came back is asked")
    assert load.failures == []


def test_spread(fleet, way, photo):
    """Requests over few connections are spread: each of three replicas gets a fair share."""
    before = [fleet.served(place) for place in range(3)]
    with Client(way.target, retries=0) as client, Load(asker(client, photo)) as load:
        load.wait_for(300)
    shares = [fleet.served(place) - before[place] for place in range(3)]
    print(f"requests by replica: {shares}, most ÷ least {max(shares) / min(shares):.2f}")
    assert load.failures == []
    assert sum(shares) == load.answers
    assert min(shares) > FAIR_SHARE * sum(shares)


def test_drained(fleet, way, photo):
    """One of three leaves under load: not even callers without retries meet a failure."""
    with Client(way.target, retries=0) as client, Load(asker(client, photo)) as load:
        way.prepare_to_drain(1)
        fleet.drain(1)
        load.wait_for(100)
    assert load.failures == []
