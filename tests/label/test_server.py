"""The page's HTTP interface: what is next, answers that are on the disk, the state as it changes, and errors."""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

import pytest

from penult.label.errors import LabelError
from penult.label.server import LabelServer

pytestmark = pytest.mark.server
FILES = sorted(file.name for file in (files("penult.label") / "static").iterdir() if file.name != "index.html")


def truth(id_: str) -> str:
    """Return the class of a photo."""
    return id_.partition("/")[0]


def answer_some(served, number: int) -> dict:
    """Label the next photos as they are, and return the state."""
    items = [{"id": item["id"], "label": truth(item["id"])} for item in served.next(number)]
    return served.client.post("/api/labels", json={"items": items}).json()


def fitted(served, labels: int) -> dict:
    """Return the state once the classifier knows so many labels."""
    state = served.client.get("/api/state").json()
    while state["fitted_labels"] != labels:
        state = served.client.get("/api/state", params={"after": state["revision"]}).json()
    return state


def test_an_answer_is_on_the_disk_when_it_is_acknowledged(served):
    """The row is in the file when the response arrives, which is the new state."""
    (item,) = served.next()
    answer = served.client.post("/api/labels", json={"id": item["id"], "label": "star", "was": None})
    assert served.written() == {item["id"]: "star"}
    assert (answer.status_code, answer.json()["labelled"]) == (200, 1)
    taken = served.client.post("/api/labels", json={"id": item["id"], "label": None, "was": "star"})
    assert (taken.json()["labelled"], served.written()) == (0, {})
    skipped = served.client.post("/api/labels", json={"id": item["id"], "skip": True})
    assert (skipped.json()["skipped"], served.written()) == (1, {})


def test_what_is_next_can_be_shown(served):
    """Photos come with a reason, and with addresses at which they are JPEGs that a browser may keep."""
    answer_some(served, 40)
    fitted(served, 40)
    first, second = served.next(2)
    assert first["id"] != second["id"]
    assert first["reason"]
    assert first["guess"] == first["probabilities"][0][0]
    assert {truth(near["id"]) == near["label"] for near in first["neighbours"]} == {True}
    for url in (first["image_url"], first["thumbnail_url"]):
        picture = served.client.get(url)
        assert (picture.status_code, picture.headers["content-type"]) == (200, "image/jpeg")
        assert "immutable" in picture.headers["cache-control"]
        again = served.client.get(url, headers={"if-none-match": picture.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    near = served.client.get("/api/neighbours", params={"id": first["id"]}).json()["items"]
    assert near[0]["id"] == first["neighbours"][0]["id"]


def test_many_are_confirmed_at_once(served):
    """The grid has photos of one guess without a label, and all of them are labelled in one request."""
    answer_some(served, 40)
    fitted(served, 40)
    items = served.client.get("/api/grid", params={"label": "star", "count": 5}).json()["items"]
    assert {item["guess"] for item in items} == {"star"}
    answers = [{"id": item["id"], "label": "star", "was": None, "kind": "grid"} for item in items]
    assert served.client.post("/api/labels", json={"items": answers}).json()["labelled"] == 40 + len(items)
    assert {served.written()[item["id"]] for item in items} == {"star"}


def test_a_page_that_waits_hears_of_another_ones_answer(served):
    """A request for the state after a revision is answered when there is a newer one; a hundred wait at one time."""
    revision = served.client.get("/api/state").json()["revision"]
    (item,) = served.next()
    waiting = 100
    ready = threading.Barrier(waiting + 1)

    def wait() -> int:
        ready.wait()
        state = served.client.get("/api/state", params={"after": revision}).json()
        while not state["labelled"]:
            state = served.client.get("/api/state", params={"after": state["revision"]}).json()
        return state["labelled"]

    with ThreadPoolExecutor(waiting) as pages:
        answers = [pages.submit(wait) for _ in range(waiting)]
        ready.wait()
        served.client.post("/api/labels", json={"id": item["id"], "label": "star"})
        assert {answer.result() for answer in answers} == {1}


def test_two_pages_do_not_overwrite_each_other(served):
    """An answer that replaces what its page has not seen is refused with what is there; nothing is written."""
    first, second = (item["id"] for item in served.next(2))
    served.client.post("/api/labels", json={"id": first, "label": "star", "was": None})
    both = {"items": [{"id": second, "label": "star", "was": None}, {"id": first, "label": "circle", "was": None}]}
    refused = served.client.post("/api/labels", json=both)
    assert refused.status_code == 409
    assert (refused.json()["id"], refused.json()["label"]) == (first, "star")
    assert served.written() == {first: "star"}


def test_two_people_lose_no_label(served):
    """Two pages that answer at one time get different photos, and every label is in the file."""
    answered: dict[str, str] = {}

    def work(name: str) -> None:
        for _ in range(15):
            (item,) = served.next()
            answer = {"id": item["id"], "label": name, "was": item["label"]}
            served.client.post("/api/labels", json=answer).raise_for_status()
            assert item["label"] == answered.get(item["id"])  # None, but for a label that is asked about
            answered[item["id"]] = name

    with ThreadPoolExecutor(2) as people:
        for done in [people.submit(work, name) for name in ("circle", "star")]:
            done.result()
    assert served.written() == answered


def test_classes_can_be_added(served):
    """A new name is a class; a name that cannot be one is refused in one line."""
    state = served.client.post("/api/classes", json={"name": " hexagon "}).json()
    assert [each["name"] for each in state["classes"]][-1] == "hexagon"
    refused = served.client.post("/api/classes", json={"name": "two\nlines"})
    assert (refused.status_code, refused.json()["error"].count("\n")) == (400, 0)


def test_the_page_is_all_its_files_and_nothing_else(refusing):
    """Every file is refusing with a type and a policy; the page names no other address and holds no script or style."""
    page = refusing.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for name in FILES:
        file = refusing.client.get(f"/static/{name}")
        assert (file.status_code, file.headers["x-content-type-options"]) == (200, "nosniff")
        assert file.headers["content-type"].partition(";")[0] in ("text/css", "text/javascript")
        assert "https://" not in file.text
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for part in ("<style", "style=", "onclick", "javascript:", "https://"):
        assert part not in page.text


def test_labels_can_be_downloaded_for_label_studio(served):
    """The download is a list of JSON with the labels so far."""
    (item,) = served.next()
    served.client.post("/api/labels", json={"id": item["id"], "label": "star"})
    answer = served.client.get("/api/label-studio")
    assert "attachment" in answer.headers["content-disposition"]
    assert "star" in json.dumps(answer.json())


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{}", {}, 400), (b"", {}, 400), (b"[]", {}, 400), (b"[" * 100_000, {}, 400), (b'{"items": []}', {}, 400),
        (b'{"id": 5, "label": "star"}', {}, 400), (b'{"id": "a.jpg", "label": 5}', {}, 400),
        (b'{"id": "a.jpg", "label": "star", "skip": "yes"}', {}, 400), (b'{"id": "a.jpg"}', {}, 400),
        (b'{"id": "absent.jpg", "label": "star"}', {}, 400),
        (b" " * (1 << 20) + b"{}", {}, 413),
        (b'{"items": [' + b",".join([b'{"id": "a", "label": "b"}'] * 201) + b"]}", {}, 400),
        (b"id=a.jpg&label=star", {"content-type": "application/x-www-form-urlencoded"}, 415),
        (b'{"id": "a.jpg", "label": "star"}', {"content-type": "text/plain"}, 415),
    ],
)  # fmt: skip
def test_bodies_that_the_page_does_not_send_are_refused(refusing, body, headers, status):
    """Wrong types, no JSON, too many bytes, another content type: a status and one line, and nothing is written."""
    answer = refusing.client.post("/api/labels", content=body, headers={"content-type": "application/json"} | headers)
    assert answer.status_code == status, answer.text
    assert "\n" not in answer.json()["error"]
    assert refusing.written() == {}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/next?count=-1", 400), ("/api/next?count=9999999", 400), ("/api/state?after=x", 400), ("/api/grid", 400),
        ("/api/grid?label=nothing", 400), ("/api/neighbours?id=../../etc/passwd", 400), ("/absent", 404),
        ("/api/labels", 405), ("/image/" + "0" * 64, 404), ("/image/x?size=5000", 400),
    ],
)  # fmt: skip
def test_wrong_addresses_are_told_in_one_line(refusing, path, status):
    """What is not there, or out of range, has a status and a line."""
    answer = refusing.client.get(path)
    assert answer.status_code == status, answer.text
    assert "\n" not in answer.json()["error"]


def test_a_photo_that_is_gone_is_told_in_one_line(refusing, shapes):
    """If a file can no longer be read, its picture is an error with the reason."""
    photo = shapes.photos[-1]
    data = photo.path.read_bytes()
    photo.path.unlink()
    try:
        answer = refusing.client.get(f"/image/{photo.sha256}?size=1280")
    finally:
        photo.path.write_bytes(data)
    assert answer.status_code == 503
    assert "can no longer be read" in answer.json()["error"]


def test_a_taken_port_is_told_in_one_line(refusing):
    """A port that another program has is refused before anything starts; port 0 takes a free one."""
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(LabelError, match="another program has it") as caught,
    ):
        LabelServer(refusing.session, other.getsockname()[1])
    assert "--port" in caught.value.message
