"""Three replicas with one store: what one is given, all find."""

import pytest
from fleet import HOSTS, Fleet, Load

from penult.client import Client, Item

LABELS = ("dark", "grey", "bright")


@pytest.fixture(scope="module")
def sharing(start_server, quick, make_database) -> Fleet:
    """Replicas whose collections are in one PostgreSQL."""
    return Fleet(start_server, quick, "--lookup", make_database())


def test_all_find_what_one_was_given(sharing, encode):
    """Items put through each replica are found by every other, also under load while one dies and after it is back."""
    photos = {label: encode(level) for label, level in zip(LABELS, (20, 128, 230), strict=True)}
    clients = [Client(target) for target in sharing.targets]
    for client, (label, photo) in zip(clients, photos.items(), strict=True):
        client.put_items("shades", [Item(id=label, label=label, image=photo)], create_for="light")

    def finds_all(client: Client) -> None:
        answer = client.lookup(list(photos.values()), collection="shades", k=3)
        assert [[n.id for n in result.neighbours][0] for result in answer.results] == list(LABELS)
        assert all(len(result.neighbours) == 3 for result in answer.results)

    for client in clients:
        finds_all(client)
    with Client(sharing.targets) as any_of_them, Load(lambda: finds_all(any_of_them)) as load:
        sharing.kill(0)
        load.wait_for(50)
        clients[1].put_items("shades", [Item(id="late", label="late", image=encode(200))])
        sharing.start(0)
        load.wait_for(50)
    assert load.failures == []
    assert [len(client.get_items("shades", ["late"])) for client in clients] == [1, 1, 1]
    for client in clients:
        client.close()
