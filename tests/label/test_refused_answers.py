"""An answer that cannot be written: one line for the page, and nothing is lost."""

import resource

import httpx
import pytest

pytestmark = pytest.mark.server


def test_two_tabs_that_answer_in_turns_lose_nothing(served):
    """Each gets photos of its own, and all answers of both are in the file."""
    with httpx.Client(base_url=served.base, trust_env=False, timeout=60) as other:
        other.get("/", params={"token": served.server.token})
        expected = {}
        for turn in range(40):
            tab = (served.client, other)[turn % 2]
            item = {"kind": "check"}  # of a label that the other tab may have given
            while item["kind"] == "check":
                (item,) = tab.get("/api/next", params={"count": 1}).json()["items"]
            label = ("star", "circle")[turn % 3 == 0]
            answer = tab.post("/api/labels", json={"id": item["id"], "label": label, "was": None})
            assert answer.status_code == 200
            expected[item["id"]] = label
    assert len(expected) == 40
    assert served.written() == expected


def test_a_full_disk_is_a_line_on_the_page_until_there_is_space(served):
    """The answer is refused, the state has the line, the file is as before; the same answer works later."""
    first, second = served.next(2)
    served.client.post("/api/labels", json={"id": first["id"], "label": "star"})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (served.labels.stat().st_size + 3, hard))
    try:
        refused = served.client.post("/api/labels", json={"id": second["id"], "label": "star"})
        problem = served.client.get("/api/state").json()["problem"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (refused.status_code, refused.json()["error"]) == (503, problem)
    assert problem == f"cannot write {served.labels}: File too large; allow larger files (ulimit -f)"
    assert served.written() == {first["id"]: "star"}
    state = served.client.post("/api/labels", json={"id": second["id"], "label": "star"}).json()
    assert (state["problem"], state["labelled"], len(served.written())) == ("", 2, 2)
