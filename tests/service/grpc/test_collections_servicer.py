"""Collections over the wire: stored, found, voted on, refused, and still there after a kill."""

import asyncio
import re
import shutil
import signal
import time

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from penult.client import Client, ItemFailure, Neighbours, NewItem, RequestFailed
from penult.lookup.errors import StoreUnavailable
from penult.service.inference.collections import Collections
from penult.service.observability.metrics import Metrics
from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc


@pytest.fixture(scope="module")
def running(models, start_server, tmp_path_factory):
    """A server of digits with a folder for collections."""
    return start_server(models, "--lookup", str(tmp_path_factory.mktemp("lookup") / "here"))


@pytest.fixture
def client(running):
    """A client of it."""
    with Client(running.target) as opened:
        yield opened


@pytest.fixture
def known(client, photo_paths, request):
    """A collection, named as the test, of all but every fifth photo, labelled by folder."""
    name = re.sub("[^A-Za-z0-9]+", "-", request.node.name).strip("-")[-64:].strip("-")
    items = [
        NewItem(
            f"{n}", path, label=path.parent.name, metadata={"number": float(n), "even": n % 2 == 0, "name": path.stem}
        )
        for n, path in enumerate(photo_paths)
        if n % 5
    ]
    fields = {"number": "number", "even": "boolean", "name": "string"}
    assert client.put_items(name, items, fields=fields) == (None,) * len(items)
    yield name
    client.drop_collection(name)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine in float64."""
    a, b = a.astype(float), b.astype(float)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_a_photo_finds_itself_and_its_like(client, known, photo_paths, photos):
    """The nearest of a stored photo is itself, then the nearest of the others, with labels and metadata."""
    answer = client.lookup(photo_paths[1:4], known, k=5)
    descriptors = client.describe(photos).results
    assert (answer.model, answer.version) == ("digits", 1)
    for n, found in zip((1, 2, 3), answer.results, strict=True):
        assert (found[0].id, found[0].label) == (f"{n}", photo_paths[n].parent.name)
        assert found[0].similarity == pytest.approx(1, abs=1e-5)
        assert found[0].metadata == {"number": float(n), "even": n % 2 == 0, "name": photo_paths[n].stem}
        right = sorted((cosine(descriptors[n], descriptors[m]) for m in range(100) if m % 5), reverse=True)[:5]
        assert [each.similarity for each in found] == pytest.approx(right, abs=1e-5)


def test_descriptors_find_what_their_photos_find(client, known, photos):
    """Descriptors in place of photos give the same neighbours."""
    rows = np.stack(client.describe(photos[:10]).results)
    by_photo, by_descriptor = client.lookup(photos[:10], known), client.lookup(rows, known)
    assert by_descriptor.model == ""
    for a, b in zip(by_photo.results, by_descriptor.results, strict=True):
        assert [each.similarity for each in a] == pytest.approx([each.similarity for each in b], abs=1e-6)


@pytest.mark.parametrize(
    ("where", "right"),
    [({"label": "3"}, lambda e: e.label == "3"), ({"label": ["3", "5"]}, lambda e: e.label in "35"),
     ({"number": (20.0, 40.0)}, lambda e: 20 <= e.metadata["number"] <= 40),
     ({"number": (None, 9.0)}, lambda e: e.metadata["number"] <= 9), ({"even": True}, lambda e: e.metadata["even"]),
     ({"even": False, "label": "1"}, lambda e: not e.metadata["even"] and e.label == "1")],
)  # fmt: skip
def test_filters(client, known, photos, where, right):
    """What does not match is not found, and all that matches is."""
    everything = client.lookup(photos[:1], known, k=1000).results[0]
    wanted = {each.id for each in everything if right(each)}
    assert 0 < len(wanted) < len(everything) == 80
    assert {each.id for each in client.lookup(photos[:1], known, k=1000, where=where).results[0]} == wanted


def test_distance_bounds_what_counts(client, known, photos):
    """Nothing further than max_distance comes."""
    everything = client.lookup(photos[:1], known, k=1000).results[0]
    near = client.lookup(photos[:1], known, k=1000, max_distance=0.3).results[0]
    assert [each.id for each in near] == [each.id for each in everything if each.similarity >= 0.7]


def test_neighbours_come_with_classes_and_vote(client, known, photos, photo_paths):
    """classify gives neighbours out of the same pass; the third scorer votes with them, each by its similarity."""
    unseen = photos[::5]
    plain = client.classify(unseen, scorer="svm", neighbours=Neighbours(known, k=7))
    alone = client.classify(unseen, scorer="svm")
    assert [r.label for r in plain.results] == [r.label for r in alone.results]
    voted = client.classify(unseen, scorer="neighbours", neighbours=Neighbours(known, k=7), include_descriptor=True)
    assert voted.scorer == "neighbours"
    for result, same in zip(voted.results, plain.results, strict=True):
        votes: dict[str, float] = {}
        for each in result.neighbours:
            votes[each.label] = votes.get(each.label, 0) + each.similarity
        assert result.label == max(votes, key=votes.get)
        assert result.probability == pytest.approx(votes[result.label] / sum(votes.values()), abs=1e-5)
        assert [each.id for each in result.neighbours] == [each.id for each in same.neighbours]
        assert len(result.descriptor) == 128
    right = sum(r.label == path.parent.name for r, path in zip(voted.results, photo_paths[::5], strict=True))
    assert right >= 17


def test_nobody_near_is_said_in_place(client, known, photos):
    """Where a filter or a distance leaves no voter, that photo has NOT_FOUND, and the others their answers."""
    wanted = Neighbours(known, k=3, where={"label": "0"}, max_distance=0.0001)
    results = client.classify(photos[:20], scorer="neighbours", neighbours=wanted).results
    failed = [result for result in results if isinstance(result, ItemFailure)]
    assert 0 < len(failed) < 20
    assert {(failure.code, failure.reason) for failure in failed} == {("NOT_FOUND", "NO_NEIGHBOURS")}


def test_items_are_replaced_read_and_deleted(client, known, photo_paths):
    """Put again, an item has its new label; read, it is as stored; deleted, it is gone for good."""
    assert client.put_items(
        known, [NewItem("1", photo_paths[7], label="other", source="a/b.png", thumbnail=b"\xff\xd8x")]
    ) == (None,)
    (item,) = client.get_items(known, ["1", "absent"], descriptors=True, thumbnails=True)
    assert (item.label, item.metadata, item.source, item.thumbnail) == ("other", {}, "a/b.png", b"\xff\xd8x")
    np.testing.assert_array_equal(item.descriptor, client.describe(photo_paths[7:8]).results[0])
    assert client.get_items(known, ["1"])[0].descriptor is None
    assert client.delete_items(known, ["1", "2", "absent"]) == 2
    assert client.get_items(known, ["1", "2"]) == []
    assert not {"1", "2"} & {each.id for each in client.lookup(photo_paths[:1], known, k=1000).results[0]}
    pages, seen = 0, []
    while page := client.get_items(known, after=seen[-1] if seen else "", limit=30):
        pages, seen = pages + 1, seen + [each.id for each in page]
    assert (pages, len(seen), seen) == (3, 78, sorted(seen))


def test_collections_are_told(client, known, bundle):
    """A collection tells whose descriptors it holds, its fields, and how it is searched."""
    (told,) = [each for each in client.list_collections() if each.name == known]
    assert (told.items, told.model, told.fingerprint) == (80, "digits", bundle.manifest.fingerprint)
    assert (told.dimension, told.metric, told.index) == (128, "cosine", "exact")
    assert told.fields == {"number": "number", "even": "boolean", "name": "string"}
    assert told.disk_bytes > 0


def test_a_bad_photo_fails_alone(client, known, photo_paths, tmp_path):
    """Among items a broken photo, an unreadable file and good ones: each fails or is stored by itself."""
    items = [NewItem("good", photo_paths[0]), NewItem("bad", b"text"), NewItem("none", tmp_path / "absent.png")]
    results = client.put_items(known, items)
    assert results[0] is None
    assert [result.code for result in results[1:]] == ["INVALID_ARGUMENT", "NOT_FOUND"]
    assert [item.id for item in client.get_items(known, ["good", "bad", "none"])] == ["good"]
    answer = client.lookup([photo_paths[0], b"text"], known)
    assert len(answer.results[0]) == 10
    assert isinstance(answer.results[1], ItemFailure)


ZERO, ONES = np.zeros(128, np.float32), np.ones(128, np.float32)
REFUSED = {
    "nan": (NewItem("a", descriptor=np.where(np.arange(128) == 3, np.nan, ONES)), "DESCRIPTOR_VALUES"),
    "infinite": (NewItem("a", descriptor=ONES * np.inf), "DESCRIPTOR_VALUES"),
    "huge": (NewItem("a", descriptor=ONES * 2e4), "DESCRIPTOR_VALUES"),
    "zero": (NewItem("a", descriptor=ZERO), "DESCRIPTOR_ZERO"),
    "short": (NewItem("a", descriptor=ONES[:5]), "DESCRIPTOR_LENGTH"),
    "empty": (NewItem("a", descriptor=ONES[:0]), "DESCRIPTOR_LENGTH"),
    "no id": (NewItem("", descriptor=ONES), "ID"),
    "long id": (NewItem("é" * 257, descriptor=ONES), "ID"),
    "id with a zero": (NewItem("a\0b", descriptor=ONES), "ID"),
    "long label": (NewItem("a", descriptor=ONES, label="x" * 513), "LABEL"),
    "undeclared": (NewItem("a", descriptor=ONES, metadata={"colour": "red"}), "METADATA_FIELD"),
    "other type": (NewItem("a", descriptor=ONES, metadata={"number": "7"}), "METADATA_TYPE"),
    "truth for a number": (NewItem("a", descriptor=ONES, metadata={"number": True}), "METADATA_TYPE"),
    "nan for a number": (NewItem("a", descriptor=ONES, metadata={"number": float("nan")}), "METADATA_TYPE"),
    "much metadata": (NewItem("a", descriptor=ONES, metadata={"name": "x" * (17 << 10)}), "METADATA_SIZE"),
    "large thumbnail": (NewItem("a", descriptor=ONES, thumbnail=bytes(46 << 10)), "THUMBNAIL"),
    "long source": (NewItem("a", descriptor=ONES, source="x" * 4097), "SOURCE"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_stored_is_refused(client, known, case):
    """Each is INVALID_ARGUMENT with its reason, names its place, and leaves the good item of its batch out too."""
    item, reason = REFUSED[case]
    with pytest.raises(RequestFailed) as caught:
        client.put_items(known, [NewItem("fine", descriptor=ONES), item])
    assert (caught.value.code, caught.value.reason) == ("INVALID_ARGUMENT", reason)
    assert len(caught.value.message) < 250
    assert client.get_items(known, ["fine", "a"]) == []


def test_wrong_searches_are_refused(client, known, photos):
    """k, distances, filters and descriptors that cannot be are INVALID_ARGUMENT; no such collection is NOT_FOUND."""
    cases = [
        ({"k": 1001}, "INVALID_ARGUMENT", "K"), ({"max_distance": 2.5}, "INVALID_ARGUMENT", "MAX_DISTANCE"),
        ({"max_distance": float("nan")}, "INVALID_ARGUMENT", "MAX_DISTANCE"),
        ({"where": {"colour": "red"}}, "INVALID_ARGUMENT", "FILTER_FIELD"),
        ({"where": {"name": (1.0, 2.0)}}, "INVALID_ARGUMENT", "FILTER"),
        ({"where": {"number": (None, None)}}, "INVALID_ARGUMENT", "FILTER"),
        ({"where": {"number": "x"}}, "INVALID_ARGUMENT", "METADATA_TYPE"),
        ({"where": {"label": ["x"] * 257}}, "INVALID_ARGUMENT", "FILTER"),
        ({"where": {"1=1 OR number": 1.0}}, "INVALID_ARGUMENT", "FILTER_FIELD"),
    ]  # fmt: skip
    for options, code, reason in cases:
        with pytest.raises(RequestFailed) as caught:
            client.lookup(photos[:1], known, **options)
        assert (caught.value.code, caught.value.reason) == (code, reason), options
    for name, code in (("absent", "NOT_FOUND"), ("../x", "INVALID_ARGUMENT"), ("", "INVALID_ARGUMENT")):
        for act in (lambda n: client.lookup(photos[:1], n), lambda n: client.get_items(n, ["a"]), client.drop_collection,
                    lambda n: client.delete_items(n, ["a"]), lambda n: client.replace_collection(n, known)):  # fmt: skip
            with pytest.raises(RequestFailed) as caught:
                act(name)
            assert caught.value.code == code, name
    with pytest.raises(RequestFailed, match="needs `neighbours`"):
        client.classify(photos[:1], scorer="neighbours")


def test_requests_that_are_neither_one_nor_the_other(running, connect, failure, known, photos):
    """Photos and descriptors at once, neither, an item of nothing, the same id twice, too many: all told."""
    stub = penult_pb2_grpc.PenultServiceStub(connect(running.target))
    query, image = pb.NeighbourQuery(collection=known), pb.Image(encoded=photos[0])
    descriptor = pb.Descriptor(values=ONES.tolist())
    cases = [
        (stub.Lookup, pb.LookupRequest(query=query), "LOOKUP_QUERY"),
        (stub.Lookup, pb.LookupRequest(query=query, images=[image], descriptors=[descriptor]), "LOOKUP_QUERY"),
        (stub.Lookup, pb.LookupRequest(query=query, descriptors=[descriptor] * 257), "REQUEST_COUNT"),
        (stub.PutItems, pb.PutItemsRequest(collection=known), "REQUEST_COUNT"),
        (stub.PutItems, pb.PutItemsRequest(collection=known, items=[pb.Item(id="a")]), "ITEM_EMPTY"),
        (stub.PutItems, pb.PutItemsRequest(collection=known, items=[pb.Item(id="a", descriptor_vector=descriptor)] * 2), "ID_TWICE"),
        (stub.PutItems, pb.PutItemsRequest(collection="new", items=[pb.Item(id="a", descriptor_vector=descriptor)], fields={"x": 9}), "COLLECTION_FIELDS"),
        (stub.PutItems, pb.PutItemsRequest(collection="new", items=[pb.Item(id="a", descriptor_vector=descriptor)], fields={"label": 1}), "COLLECTION_FIELDS"),
        (stub.DeleteItems, pb.DeleteItemsRequest(collection=known), "ITEM_COUNT"),
        (stub.GetItems, pb.GetItemsRequest(collection=known, ids=["x"] * 1001), "ITEM_COUNT"),
    ]  # fmt: skip
    for method, request, reason in cases:
        error = failure(lambda method=method, request=request: method(request))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert dict(error.trailing_metadata())["penult-reason"] == reason


def test_another_models_descriptors_are_refused(models, start_server, publish_brightness, tmp_path, encode, photos):
    """A collection belongs to its first model's fingerprint: photos of another, and its descriptors, are refused."""
    shutil.copytree(models / "digits", tmp_path / "models" / "digits")
    publish_brightness(tmp_path / "models")
    server = start_server(tmp_path / "models", "--lookup", str(tmp_path / "lookup"))
    with Client(server.target) as client:
        client.put_items("mine", [NewItem("a", photos[0])], model="digits")
        assert client.lookup([photos[0]], "mine").model == "digits"  # the model is found by the collection
        cases = [
            lambda: client.put_items("mine", [NewItem("b", encode(20))], model="light"),
            lambda: client.lookup([encode(20)], "mine", model="light"),
            lambda: client.classify([encode(20)], model="light", neighbours=Neighbours("mine")),
        ]
        for act in cases:
            with pytest.raises(RequestFailed) as caught:
                act()
            assert (caught.value.code, caught.value.reason) == ("FAILED_PRECONDITION", "FINGERPRINT")


def test_acknowledged_items_survive_a_kill(models, start_server, tmp_path, photos):
    """SIGKILL right after an answer: the next server of the folder has the items, and its first search finds them."""
    folder = str(tmp_path / "lookup")
    server = start_server(models, "--lookup", folder)
    with Client(server.target) as client:
        client.put_items("c", [NewItem(f"{n}", photo) for n, photo in enumerate(photos[:50])])
        client.delete_items("c", ["7"])
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    with Client(start_server(models, "--lookup", folder).target) as client:
        found = client.lookup(photos[:50], "c", k=1).results
        assert [each[0].id == f"{n}" for n, each in enumerate(found)].count(False) == 1
        assert client.list_collections()[0].items == 49


def test_a_folder_has_one_server(models, start_server, tmp_path, photos):
    """A second server of the same folder answers all but collections, and says who has them."""
    folder = str(tmp_path / "lookup")
    first = start_server(models, "--lookup", folder)
    with Client(first.target) as client:
        client.put_items("c", [NewItem("a", photos[0])])
    second = start_server(models, "--lookup", folder)
    with Client(second.target, retries=0) as client:
        assert client.classify(photos[:1]).results[0].label
        with pytest.raises(RequestFailed) as caught:
            client.lookup(photos[:1], "c")
        assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "STORE_LOCKED")
        assert f"process {first.process.pid} has the collections" in caught.value.message
        first.process.terminate()
        first.process.wait(120)
        ended = time.monotonic()
        while True:  # not at once: a store that could not be opened is left in peace for two seconds
            try:
                assert client.lookup(photos[:1], "c").results[0][0].id == "a"
                break
            except RequestFailed:
                assert time.monotonic() < ended + 120
                time.sleep(0.1)


def test_a_store_that_cannot_be_reached_is_not_tried_by_each(monkeypatch):
    """Twenty requests at once wait for one attempt, not for twenty, and all say the same; later it is tried again."""
    tried = []

    def fail(where: str) -> None:
        tried.append(where)
        time.sleep(0.2)
        raise StoreUnavailable("STORE_UNREACHABLE", "no answer")

    async def ask(lookups: Collections) -> list[BaseException]:
        return await asyncio.gather(*(lookups.get("c", ["a"]) for _ in range(20)), return_exceptions=True)

    monkeypatch.setattr("penult.service.inference.collections.open_store", fail)
    monkeypatch.setattr("penult.service.inference.collections._REST_S", 0.5)
    lookups = Collections("milvus://nowhere:1", 4, Metrics(CollectorRegistry()))
    failed = asyncio.run(ask(lookups))
    assert {(type(e), e.reason, e.message) for e in failed} == {(StoreUnavailable, "STORE_UNREACHABLE", "no answer")}
    assert len(tried) == 1
    time.sleep(0.5)
    lookups._opening = asyncio.Lock()  # of another loop
    asyncio.run(ask(lookups))
    assert len(tried) == 2


def test_collections_can_be_off(quick, start_server, encode):
    """With --lookup off, and with several workers on a folder, FAILED_PRECONDITION says what to do."""
    for options in (("--lookup", "off"), ("--workers", "2")):
        with Client(start_server(quick, *options).target) as client:
            with pytest.raises(RequestFailed, match=r"FAILED_PRECONDITION: .*--lookup"):
                client.lookup([encode(20)], "c")


def test_lookups_are_timed(client, known, photos, running, samples):
    """Searches are counted in penult_phase_seconds{phase="lookup"}."""
    key = ("penult_phase_seconds_count", ("phase", "lookup"))
    before = samples(running.http).get(key, 0)
    client.lookup(photos[:3], known)
    assert samples(running.http)[key] == before + 1
