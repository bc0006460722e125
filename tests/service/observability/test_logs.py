"""Log lines: for people or as JSON, with request ids, sampled, without secrets, and at a level that changes."""

import json
import logging
import re
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest

from penult.client import Client, RequestFailed
from penult.service.observability.logs import AccessLog


def lines(server, wanted: str = "", seconds: float = 120.0) -> list[str]:
    """The log so far, once a line matches."""
    deadline = time.monotonic() + seconds
    while True:
        found = server.log.read_text().splitlines()
        if any(re.search(wanted, line) for line in found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def test_json_lines_are_objects_with_request_ids(quick, start_server, encode):
    """Every line is an object with time, level and logger; a request's line has the id that its client was told.

    What is no HTTP at all gets its answer, and no line of another form.
    """
    server = start_server(quick, "--log-format", "json", "--access-log", "1", "--http")
    with socket.create_connection(("127.0.0.1", int(server.http.rpartition(":")[2]))) as connection:
        connection.sendall(b"\0 is no HTTP\r\n\r\n")
        assert b" 400 " in connection.recv(1 << 16)
    with Client(server.target, retries=0) as client:
        client.classify([encode(20), b"no photo"])
        with pytest.raises(RequestFailed) as caught:
            client.classify([encode(20)], model="absent")
    found = [json.loads(line) for line in lines(server, "MODEL_UNKNOWN")]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in found)
    good, bad = [line for line in found if line["logger"] == "penult.access"]
    assert (good["method"], good["code"], good["model"], good["version"]) == ("Classify", "OK", "light", "1")
    assert good["ms"] > 0
    assert good["peer"].startswith("ipv4:127.0.0.1:")
    assert (bad["code"], bad["reason"]) == ("NOT_FOUND", "MODEL_UNKNOWN")
    assert bad["request_id"] == caught.value.request_id
    assert re.fullmatch(r"[0-9a-f]{16}", good["request_id"])


def test_text_lines_have_the_id_too(quick, start_server, encode):
    """At a terminal the id stands at the line's end; health checks and scrapes make no line."""
    server = start_server(quick, "--access-log", "1")
    with Client(server.target) as client:
        client.classify([encode(20)])
    (line,) = [line for line in lines(server, "penult.access") if "penult.access" in line]
    assert re.search(r"INFO    penult.access: method=Classify code=OK ms=[\d.]+ model=light version=1 .*"
                     r"request_id=[0-9a-f]{16}$", line)  # fmt: skip


def test_a_photo_on_the_status_page_has_an_access_line(quick, start_server, encode):
    """The access log has the photos of the status page, with the model that answered and the request's id."""
    server = start_server(quick, "--access-log", "1")
    headers = {"content-type": "application/octet-stream"}
    answer = httpx.post(f"{server.http}/try", content=encode(20), headers=headers, timeout=60)
    wrong = httpx.post(f"{server.http}/try?model=absent", content=encode(20), headers=headers, timeout=60)
    good, bad = [line for line in lines(server, "MODEL_UNKNOWN") if "penult.access" in line]
    assert "method=http.Try code=OK " in good
    assert " model=light version=1 peer=127.0.0.1 " in good
    assert good.endswith(f"request_id={answer.headers['penult-request-id']}")
    assert "method=http.Try code=NOT_FOUND " in bad
    assert bad.endswith(f"request_id={wrong.headers['penult-request-id']}")


def test_no_access_lines_unless_asked_for(quick, start_server, encode):
    """By default requests leave no line."""
    server = start_server(quick)
    with Client(server.target) as client:
        client.classify([encode(20)])
    assert "penult.access" not in server.log.read_text()


def test_a_share_of_requests_is_logged(caplog):
    """Of 2,000 requests a tenth or so get a line; all of those that failed by the server's fault do."""
    access = AccessLog(0.1)
    with caplog.at_level(logging.INFO):
        for _ in range(2000):
            access.note("Classify", "OK", 0.01, "m", "1", "", lambda: "peer")
        sampled = len(caplog.records)
        for _ in range(20):
            access.note("Classify", "INTERNAL", 0.01, "", "", "BUG", lambda: "peer")
    assert 120 < sampled < 290
    assert len(caplog.records) == sampled + 20


@pytest.mark.parametrize("workers", [1, 2])
def test_the_level_changes_at_run_time(quick, start_server, workers):
    """SIGUSR1 turns debug on, a second one off again, in every worker; the server goes on."""
    server = start_server(quick, "--log-level", "warning", "--workers", str(workers), "--lookup", "off")
    for level in ("debug", "warning"):
        server.process.send_signal(signal.SIGUSR1)
        found = lines(server, f"log level is now {level}")
        deadline = time.monotonic() + 120
        expected = workers + (workers > 1)
        while sum(f"log level is now {level}" in line for line in found) < expected:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            found = lines(server)
    with Client(server.target) as client:
        assert client.list_models()


def test_passwords_are_not_in_command_lines(quick, start_server):
    """A password that came by a variable stands in no process's arguments, also with several workers."""
    url = "postgresql://anna:secret@127.0.0.1:1/shop"
    server = start_server(quick, "--workers", "2", env={"PENULT_LOOKUP": url})
    main = server.process.pid
    pids = Path(f"/proc/{main}/task/{main}/children").read_text().split()
    assert len(pids) == 2
    for pid in (main, *pids):
        assert "secret" not in Path(f"/proc/{pid}/cmdline").read_text()
        assert f"PENULT_LOOKUP={url}" in Path(f"/proc/{pid}/environ").read_text()


def test_passwords_are_not_logged(quick, start_server):
    """The settings' line shows where collections are, without the password."""
    server = start_server(quick, "--lookup", "postgresql://anna:secret@127.0.0.1:1/shop")
    text = "\n".join(lines(server, "settings:"))
    assert "secret" not in text
    assert "postgresql://anna:…@127.0.0.1:1/shop" in text
