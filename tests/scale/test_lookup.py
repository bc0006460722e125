"""Three replicas with one store: what one is given, all find."""

import numpy as np
import pytest
from tests.scale.fleet import Fleet, Load

from penult.client import Client
from penult.client.types import NewItem

LABELS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def sharing(start_server, quick, make_database) -> Fleet:
    """Replicas whose collections are in one PostgreSQL."""
    return Fleet(start_server, quick, "--lookup", make_database())


def test_all_find_what_one_was_given(sharing, encode):
    """Items put through each replica are found by every other, also under load while one dies and after it is back."""
    photos = {label: encode(np.full((8, 8, 3), 200 * np.eye(3)[n], np.uint8)) for n, label in enumerate(LABELS)}
    clients = [Client(target) for target in sharing.targets]
    for client, (label, photo) in zip(clients, photos.items(), strict=True):
        client.put_items("colours", [NewItem(label, photo, label=label)])

    def finds_all(client: Client) -> None:
        answer = client.lookup(list(photos.values()), "colours", k=3)
        assert [neighbours[0].id for neighbours in answer.results] == list(LABELS)
        assert all(len(neighbours) == 3 for neighbours in answer.results)

    for client in clients:
        finds_all(client)
    with Client(sharing.targets) as any_of_them, Load(lambda: finds_all(any_of_them)) as load:
        sharing.kill(0)
        load.wait_for(50)
        clients[1].put_items("colours", [NewItem("late", encode(200))])
        sharing.start(0)
        load.wait_for(50)
    assert load.failures == []
    assert [len(client.get_items("colours", ["late"])) for client in clients] == [1, 1, 1]
    for client in clients:
        client.close()
