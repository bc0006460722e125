"""The status page: true numbers, a real browser, photos tried as clients are answered, and nothing for strangers."""

import re
import shutil
import subprocess
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx
import numpy as np
import pytest
from PIL import Image

from penult.client import Client, NewItem, RequestFailed

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHOTO = {"content-type": "application/octet-stream"}
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def running(models, start_server, tmp_path_factory):
    """A server of digits with a collection."""
    return start_server(models, "--lookup", str(tmp_path_factory.mktemp("lookup")), "--watch-s", "0.2")


@pytest.fixture(scope="module")
def photos(digits):
    """Test photos, five of each digit."""
    return [path for digit in "0123456789" for path in sorted((digits / "test" / digit).iterdir())[:5]]


@pytest.fixture(scope="module")
def asked(running, photos):
    """The server, once it was asked: 50 photos twice, noise once, a wrong model thrice, a collection of ten."""
    with Client(running.target, retries=0) as client:
        client.classify(photos)
        client.classify(photos)
        client.classify(list(np.random.default_rng(0).integers(0, 256, (25, 32, 32, 3), dtype=np.uint8)))
        client.put_items("seen", [NewItem(path.name, path, label="seen") for path in photos[:10]])
        for _ in range(3):
            with pytest.raises(RequestFailed):
                client.classify(photos[:1], model="absent")
    return running


def browse(url: str, folder, *options: str) -> str:
    """The page's elements after its script has run for a while."""
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
         "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=4000", *options, url],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def test_the_numbers_are_true(asked):
    """What /status.json tells is what was asked: photos, classes, novelty, errors, the version that was loaded."""
    told = httpx.get(f"{asked.http}/status.json").json()
    assert (told["state"], told["can_try"]) == ("ready", True)
    (model,) = told["models"]
    assert (model["model"], model["version"], model["architecture"], model["answers"]) == ("digits", "1", "tiny5", 125)
    assert sum(each["share"] for each in model["classes"]) == pytest.approx(1)
    assert sum(each["baseline"] for each in model["classes"]) == pytest.approx(1)
    assert 20 / 135 < model["novel_share"] < 36 / 135  # ten more were stored
    load = told["load"]
    assert load["errors_per_s"]["NOT_FOUND"] == pytest.approx(load["requests_per_s"] * 3 / 7, rel=0.01)
    assert 0 < load["p50_ms"] <= load["p99_ms"]
    assert {"decode", "queue", "inference", "score", "encode"} <= set(load["phases_ms"])
    (event,) = told["events"]
    assert (event["outcome"], event["model"], event["version"]) == ("loaded", "digits", 1)
    assert abs(event["time"] - time.time()) < 300


def test_refusals_are_told_with_their_reason(copy_model, start_server, tmp_path):
    """A version that lacks a file is refused, and the page says which and why."""
    folder = copy_model(tmp_path / "models")
    server = start_server(tmp_path / "models", "--watch-s", "0.2")
    shutil.copytree(folder / "1", folder / "2")
    (folder / "2" / "svm.pkl").unlink()
    deadline = time.monotonic() + 20
    while len(events := httpx.get(f"{server.http}/status.json").json()["events"]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [(each["outcome"], each["version"]) for each in events] == [("refused", 2), ("loaded", 1)]
    assert "lacks 'svm.pkl'" in events[0]["reason"]


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [500, 1280])
def test_it_works_in_a_browser(asked, tmp_path, scheme, width):
    """Chromium shows state, model, classes and numbers, without an error, and nothing from anywhere else."""
    dark = [f"--blink-settings=preferredColorScheme={int(scheme == 'light')}", f"--window-size={width},1200"]
    page = browse(f"{asked.http}/", tmp_path, *dark, "--dump-dom")
    assert re.search(r'id="state"[^>]*>ready<', page)
    assert "digits version 1" in page
    assert "tiny5 on CPU" in page
    assert len(re.findall(r"<td class=\"name\">\d</td>", page)) == 10
    assert re.search(r"NOT_FOUND [\d.]+", page)
    assert "are unlike those learnt from" in page
    browse(f"{asked.http}/", tmp_path, *dark, f"--screenshot={tmp_path / 'shot.png'}")
    with Image.open(tmp_path / "shot.png") as shot:
        assert shot.size == (width, 1200)
        assert (np.asarray(shot.convert("L"))[5, 5] > 128) == (scheme == "light")
        assert len(shot.convert("RGB").getcolors(1 << 20)) > 50


@needs_browser
def test_a_photo_is_tried_in_a_browser(asked, photos, tmp_path):
    """The page's own script sends a photo and shows classes of both scorers, novelty and the nearest items."""
    act = (
        f"\nsetTimeout(() => tryPhoto(new Blob([Uint8Array.from({list(photos[3].read_bytes())})]))"
        ".catch((error) => { document.title = `failed: ${error}`; }), 1500);"
    )

    class Proxy(BaseHTTPRequestHandler):
        """The server under another address, with a line more at the end of its script."""

        def answer(self, body: bytes = b"") -> None:
            kept = {k: v for k, v in self.headers.items() if k.lower() not in ("content-length", "accept-encoding")}
            found = httpx.request(self.command, asked.http + self.path, content=body, headers=kept, timeout=20)
            data = found.content + act.encode() * (self.path == "/script.js")
            self.send_response(found.status_code)
            for name in ("content-type", "content-security-policy"):
                self.send_header(name, found.headers.get(name, ""))
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer(self.rfile.read(int(self.headers["content-length"])))

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        Thread(target=proxy.serve_forever, daemon=True).start()
        page = browse(f"http://127.0.0.1:{proxy.server_port}/", tmp_path, "--dump-dom")
        proxy.shutdown()
    assert "<title>penult</title>" in page
    shown = page.partition('id="answer"')[2].partition("</section>")[0]
    assert "dense" in shown
    assert "svm" in shown
    assert "nearest stored items" in shown
    assert f'<td class="name">{photos[3].name}</td>' in shown
    assert "the photos learnt from: novelty" in shown


@needs_browser
def test_names_are_shown_as_text(start_server, publish_brightness, tmp_path, encode):
    """A class that is called like markup stands there as it is called, and runs nothing."""
    evil = "<img src=x onerror=document.title='bitten'>"
    publish_brightness(tmp_path / "models", classes=(evil, "bright"))
    server = start_server(tmp_path / "models")
    with Client(server.target) as client:
        assert client.classify([encode(20)]).results[0].label == evil
    page = browse(f"{server.http}/", tmp_path, "--dump-dom")
    assert "&lt;img src=x onerror=" in page
    assert "bitten</title>" not in page


def test_a_photo_tried_is_answered_as_a_clients(asked, photos):
    """Classes and probabilities of both scorers, novelty and neighbours are those of Classify and Lookup."""
    answer = httpx.post(f"{asked.http}/try?model=digits", content=photos[3].read_bytes(), headers=PHOTO)
    assert answer.status_code == 200
    told = answer.json()
    with Client(asked.target) as client:
        for scorer in ("dense", "svm"):
            found = client.classify([photos[3]], scorer=scorer).results[0]
            assert [(each["label"], each["probability"]) for each in told["scorers"][scorer]] == [
                (each.label, pytest.approx(each.probability)) for each in found.classes
            ]
            assert (told["novelty"], told["is_novel"]) == (pytest.approx(found.novelty, abs=1e-6), found.is_novel)
        near = client.lookup([photos[3]], "seen", k=5).results[0]
    assert [each["id"] for each in told["neighbours"]] == [each.id for each in near]


FOREIGN = {
    "another origin": {"origin": "http://evil.example"},
    "another site": {"sec-fetch-site": "cross-site"},
    "a form": {"content-type": "text/plain"},
    "another name of this address": {"host": "evil.example:9095"},
}


@pytest.mark.parametrize("how", FOREIGN)
def test_strangers_cannot_try(asked, photos, how):
    """What another web page could make a browser send is refused."""
    answer = httpx.post(f"{asked.http}/try", content=photos[0].read_bytes(), headers=PHOTO | FOREIGN[how])
    assert (answer.status_code, answer.json()["reason"]) == (403, "TRY_FOREIGN")


@pytest.mark.parametrize(
    ("body", "query", "status", "reason"),
    [(b"no photo", "", 400, "IMAGE_UNKNOWN_FORMAT"), (b"", "", 400, "IMAGE_EMPTY"), (bytes(9 << 20), "", 413, "BODY_SIZE"),
     (b"x", "?model=absent", 404, "MODEL_UNKNOWN"), (b"x", "?version=99", 404, "VERSION_UNKNOWN"),
     (b"x", "?version=-1", 400, "IMAGE_UNKNOWN_FORMAT")],
)  # fmt: skip
def test_what_cannot_be_tried_is_one_line(asked, body, query, status, reason):
    """Not a photo, nothing, too large, no such model: a status, a reason and a line."""
    answer = httpx.post(f"{asked.http}/try{query}", content=body, headers=PHOTO)
    assert answer.status_code == status, answer.text
    assert "\n" not in answer.json()["error"]
    assert answer.json()["reason"] == reason


def test_it_is_off_where_others_can_come(quick, start_server, encode):
    """On an open address photos are not tried unless switched on, and the page says so."""
    server = start_server(quick, "--host", "0.0.0.0")
    url = f"http://127.0.0.1:{server.http.rpartition(':')[2]}"
    assert httpx.get(f"{url}/status.json").json()["can_try"] is False
    assert httpx.post(f"{url}/try", content=encode(20), headers=PHOTO).json()["reason"] == "TRY_OFF"
    server = start_server(quick, "--host", "0.0.0.0", "--try-photos", "on")
    url = f"http://127.0.0.1:{server.http.rpartition(':')[2]}"
    assert httpx.post(f"{url}/try", content=encode(20), headers=PHOTO).status_code == 200


def test_several_fronts_have_the_page_too(quick, start_server, encode):
    """A supervisor shows the sums of its fronts, and tries no photos."""
    server = start_server(quick, "--fronts", "2", "--lookup", "off")
    with Client(server.target) as client:
        for _ in range(7):
            client.classify([encode(20)])
    told = httpx.get(f"{server.http}/status.json").json()
    assert (told["state"], told["can_try"]) == ("ready", False)
    assert [(model["model"], model["answers"]) for model in told["models"]] == [("light", 7)]
    assert httpx.get(f"{server.http}/").text.startswith("<!doctype html>")


def test_nothing_foreign_is_loaded(asked):
    """The policy forbids what is not from here, and the files name no other address."""
    for path in ("", "style.css", "script.js"):
        answer = httpx.get(f"{asked.http}/{path}")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert set(re.findall(r"https?://[^\s\"']+", answer.text)) <= {"http://www.w3.org/2000/svg"}
