"""`penult label` as a process: the page's address, and an end by Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import threading

import httpx
import pytest
from tests.fixtures.shapes import write_shapes

pytestmark = pytest.mark.server


def test_ctrl_c_ends_it_at_once_with_every_answer_in_the_file(tmp_path):
    """Ctrl-C answers the page that waits, ends without an error, and leaves the file free for the next start."""
    write_shapes(tmp_path / "photos", 8, (64, 48))
    labels = tmp_path / "labels.csv"
    command = [
        sys.executable, "-m", "penult.cli", "label", str(tmp_path / "photos"), "--labels", str(labels), "--no-browser", "--json",
        "--arch", "tiny5", "--weights", "none", "--classes", "circle,square",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "80"}
    )
    told = json.loads(process.stdout.readline())
    address, _, token = told["url"].partition("/?token=")
    with httpx.Client(base_url=address, params={"token": token}, timeout=60, trust_env=False) as client:
        item = client.get("/api/next").json()["items"][0]
        state = client.post("/api/labels", json={"id": item["id"], "label": "circle"}).json()
        asked, answers = threading.Event(), []

        def wait() -> None:
            after = state["revision"]
            with client.stream("GET", "/api/state", params={"token": token, "after": after + 1000}) as first:
                first.read()
            asked.set()
            while not answers:
                try:
                    answers.append(
                        client.get(
                            "/api/state", params={"token": token, "after": json.loads(first.content)["revision"]}
                        )
                    )
                except httpx.TransportError as error:
                    answers.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        asked.wait(60)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        waiting.join(60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "Exception" not in errors
    assert labels.read_text().splitlines()[1].startswith(f"{item['id']},circle")
