"""The status page: true numbers, a real browser, photos tried as clients are answered, and nothing for strangers."""

import base64
import io
import json
import re
import shutil
import subprocess
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from threading import Thread

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry
from tests.fixtures.gates import eventually
from tests.fixtures.statuses import status_of_a_thousand_classes

from penult.bundle.preprocess import DEFAULT_LIMITS
from penult.client import Client, NewItem, RequestFailed
from penult.service.http.status import Status
from penult.service.observability.metric_window import MetricDelta, take
from penult.service.observability.metrics import Metrics

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
        client.put_items(
            "seen", [NewItem(path.name, path, label="seen", thumbnail=thumbnail(path)) for path in photos[:10]]
        )
        for _ in range(3):
            with pytest.raises(RequestFailed):
                client.classify(photos[:1], model="absent")
    return running


def thumbnail(path) -> bytes:
    """A photo as a JPEG."""
    buffer = io.BytesIO()
    Image.open(path).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def browse(url: str, folder, *options: str) -> str:
    """The page's elements after its script has run for a while."""
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
         "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=4000", *options, url],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def test_the_numbers_are_true(asked, trained):
    """What /status.json tells is what was asked: photos, classes, novelty, errors, the version that was loaded."""
    told = httpx.get(f"{asked.http}/status.json").json()
    assert (told["state"], told["try"]["is_on"], told["fronts"]) == ("ready", True, None)
    (model,) = told["models"]
    default = json.loads((trained.folder / "manifest.json").read_text())["default_scorer"]
    assert (model["model"], model["version"], model["architecture"], model["answers"]) == ("digits", "1", "tiny5", 125)
    assert (model["class_count"], model["default_scorer"], model["scorers"]) == (10, default, ["dense", "svm"])
    assert sum(each["share"] for each in model["classes"]) == pytest.approx(1)
    assert sum(each["baseline"] for each in model["classes"]) == pytest.approx(1)
    assert 20 / 135 < model["novel_share"] < 36 / 135  # ten more were stored
    assert (model["novel_trend"], model["baseline_photos"]) == ("more", trained.metrics["val"]["dense"]["photos"])
    assert model["classes_left_out"] is None
    assert told["total"] == {"requests": 7, "errors": {"NOT_FOUND": 3}, "images": 135}
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
    deadline = time.monotonic() + 120
    while len(events := httpx.get(f"{server.http}/status.json").json()["events"]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [(each["outcome"], each["version"]) for each in events] == [("refused", 2), ("loaded", 1)]
    assert "lacks 'svm.pkl'" in events[0]["reason"]


@pytest.mark.system
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [500, 1280])
def test_it_works_in_a_browser(asked, tmp_path, scheme, width):
    """Chromium shows state, model, classes and numbers, without an error, and nothing from anywhere else."""
    dark = [f"--blink-settings=preferredColorScheme={int(scheme == 'light')}", f"--window-size={width},1200"]
    page = browse(f"{asked.http}/", tmp_path, *dark, "--dump-dom")
    assert re.search(r'id="state"[^>]*>ready<', page)
    assert ">version 1</span>" in page
    assert "tiny5 on CPU · 10 classes" in page
    assert len(re.findall(r'<th scope="row" class="name">\d</th>', page)) == 10
    assert re.search(r"7 requests since the start", page)
    assert re.search(r"NOT_FOUND</th><td class=\"number\">[\d.]+ /s", page)
    assert re.search(r"unlike the training photos</th>.*?more than usual", page)
    browse(f"{asked.http}/", tmp_path, *dark, f"--screenshot={tmp_path / 'shot.png'}")
    with Image.open(tmp_path / "shot.png") as shot:
        assert shot.size == (width, 1200)
        assert (np.asarray(shot.convert("L"))[5, 5] > 128) == (scheme == "light")
        assert len(shot.convert("RGB").getcolors(1 << 20)) > 50


@pytest.mark.system
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
            found = httpx.request(self.command, asked.http + self.path, content=body, headers=kept, timeout=120)
            data = found.content + act.encode() * (self.path == "/try.js")
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
    assert "<title>ready · penult</title>" in page
    shown = page.partition('id="answer"')[2].partition("</section>")[0]
    assert "dense" in shown
    assert "svm" in shown
    assert "Nearest stored items" in shown
    assert f"{photos[3].name} in seen" in shown
    assert 'src="data:image/jpeg;base64,' in shown
    assert re.search(r"Distance from the training photos.*[\d.]+ × the limit", shown)
    assert re.search(r"9\d % of \d+ held-out photos are below 1, half of them below 0\.\d\d", shown)


@pytest.mark.system
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
        assert told["novelty_threshold"] == pytest.approx(client.get_model().novelty_threshold)
        near = client.lookup([photos[3]], "seen", k=5).results[0]
    assert [each["id"] for each in told["neighbours"]] == [each.id for each in near]
    assert base64.b64decode(told["neighbours"][0]["thumbnail"]) == thumbnail(photos[3])


def test_a_photo_tried_counts_once(models, start_server, photos):
    """A photo tried is one request and, though both scorers answer it, one photo among the signals of drift."""
    server = start_server(models, "--lookup", "off")
    for _ in range(3):
        httpx.post(f"{server.http}/try", content=photos[0].read_bytes(), headers=PHOTO).raise_for_status()
    told = httpx.get(f"{server.http}/status.json").json()
    assert told["total"] == {"requests": 3, "errors": {}, "images": 3}
    assert told["models"][0]["answers"] == 3


def test_a_collection_can_be_named(asked, photos):
    """With `collection` its neighbours come, or why there are none; without, a missing store costs nothing."""
    url, photo = f"{asked.http}/try?collection=", photos[3].read_bytes()
    near = httpx.post(f"{url}seen", content=photo, headers=PHOTO).json()["neighbours"]
    assert (near[0]["collection"], near[0]["id"]) == ("seen", photos[3].name)
    answer = httpx.post(f"{url}absent", content=photo, headers=PHOTO)
    assert (answer.status_code, answer.json()["reason"]) == (404, "COLLECTION_UNKNOWN")


FOREIGN = {
    "another origin": {"origin": "http://evil.example"},
    "a page without an origin": {"origin": "null"},
    "another site": {"sec-fetch-site": "cross-site"},
    "another port of this machine": {"sec-fetch-site": "same-site"},
    "a form": {"content-type": "text/plain"},
    "another name of this address": {"host": "evil.example:9095"},
}


@pytest.mark.parametrize("how", FOREIGN)
def test_strangers_cannot_try(asked, photos, how):
    """What another web page could make a browser send is refused."""
    answer = httpx.post(f"{asked.http}/try", content=photos[0].read_bytes(), headers=PHOTO | FOREIGN[how])
    wanted = (415, "CONTENT_TYPE") if how == "a form" else (403, "TRY_FOREIGN")
    assert (answer.status_code, answer.json()["reason"]) == wanted


@pytest.mark.parametrize(
    ("body", "query", "status", "reason"),
    [(b"no photo", "", 400, "IMAGE_UNKNOWN_FORMAT"), (b"", "", 400, "IMAGE_EMPTY"), (bytes(DEFAULT_LIMITS.max_bytes + 1), "", 413, "BODY_SIZE"),
     (b"x", "?model=absent", 404, "MODEL_UNKNOWN"), (b"x", "?version=99", 404, "VERSION_UNKNOWN"),
     (b"x", "?version=-1", 400, "MODEL_VERSION"), (b"x", f"?version={'9' * 5000}", 400, "MODEL_VERSION"),
     (b"x", "?model=%3Cb%3E", 400, "MODEL_NAME")],
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
    told = httpx.get(f"{url}/status.json").json()["try"]
    assert told["is_on"] is False
    assert "--try-photos on" in told["why"]
    assert httpx.post(f"{url}/try", content=encode(20), headers=PHOTO).json()["reason"] == "TRY_OFF"
    assert httpx.get(f"{url}/status.json").json()["has_reports"] is False
    assert httpx.get(f"{url}/report/light/1").json()["reason"] == "REPORT_OFF"
    server = start_server(quick, "--host", "0.0.0.0", "--try-photos", "on")
    url = f"http://127.0.0.1:{server.http.rpartition(':')[2]}"
    assert httpx.post(f"{url}/try", content=encode(20), headers=PHOTO).status_code == 200


def test_the_report_is_beside_the_page(asked, models):
    """On loopback the report of what is served is one link away: the bundle's own file, and no other one."""
    (model,) = (told := httpx.get(f"{asked.http}/status.json").json())["models"]
    assert (told["has_reports"], model["has_report"]) == (True, True)
    answer = httpx.get(f"{asked.http}/report/digits/1")
    assert answer.content == (models / "digits" / "1" / "report" / "index.html").read_bytes()
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "script-src" not in answer.headers["content-security-policy"]
    assert httpx.get(f"{asked.http}/report/digits/1", headers={"host": "evil.example"}).status_code == 403
    for path, status in (("digits/2", 404), ("digits/x", 400), ("..%2Fdigits/1", 404), ("other/1", 404)):
        assert httpx.get(f"{asked.http}/report/{path}").status_code == status, path


def test_a_report_that_was_changed_is_not_shown(copy_model, start_server, tmp_path):
    """What is not the file whose digest was checked is not handed out, and the refusal names no folder."""
    folder = copy_model(tmp_path / "models")
    server = start_server(tmp_path / "models", "--lookup", "off", "--watch-s", "3600")
    (folder / "1" / "report" / "index.html").write_text("<p>another</p>")
    answer = httpx.get(f"{server.http}/report/digits/1")
    assert (answer.status_code, answer.json()["reason"]) == (404, "REPORT_CHANGED")
    assert str(tmp_path) not in answer.text


def test_several_workers_have_the_page_too(quick, start_server, encode):
    """A supervisor shows the sums of its workers, and tries no photos."""
    server = start_server(quick, "--workers", "2", "--lookup", "off")
    with Client(server.target) as client:
        for _ in range(7):
            client.classify([encode(20)])
    told = httpx.get(f"{server.http}/status.json").json()
    assert (told["state"], told["fronts"]["ready"], told["try"]["is_on"], told["events"]) == ("ready", 2, False, None)
    assert told["has_reports"] is False
    assert [(model["model"], model["answers"]) for model in told["models"]] == [("light", 7)]
    assert httpx.get(f"{server.http}/").text.startswith("<!doctype html>")


def test_nothing_foreign_is_loaded(asked):
    """The policy forbids what is not from here, and the files name no other address."""
    for path in ("", "style.css", "draw.js", "script.js", "try.js"):
        answer = httpx.get(f"{asked.http}/{path}")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert set(re.findall(r"https?://[^\s\"']+", answer.text)) <= {"http://www.w3.org/2000/svg"}


@pytest.mark.system
@needs_browser
def test_a_shadow_has_a_card(publish_brightness, start_server, samples, encode, tmp_path):
    """The card shows agreement, feedback of both versions and the verdict; the shadow is not among what is not served."""
    for classes in (("dark", "bright"), ("bright", "dark")):
        publish_brightness(tmp_path / "models", classes=classes)
    server = start_server(tmp_path / "models", "--shadow", "light=2", "--shadow-share", "1")
    with Client(server.target) as client:
        answer = client.classify([encode(230)] * 12)
        client.feedback([answer.truth(place, "bright") for place in range(12)])
    worse = "penult_shadow_worse", ("model", "light"), ("primary", "1"), ("version", "2")
    eventually(lambda: samples(server.http).get(worse))
    page = browse(server.http, tmp_path, "--dump-dom")
    shown = re.sub(r"<[^>]+>", " ", page[page.index("card shadow") :])
    for text in ("a shadow of version 1", "12 photos compared", "Both name the same class for 0 %", "12 only version 1 right",
                 "Version 2 is worse than version 1"):  # fmt: skip
        assert text in re.sub(r"\s+", " ", shown), text
    assert "Not served" not in page


@pytest.mark.system
@needs_browser
def test_a_server_that_is_gone_is_told(tmp_path):
    """Where /status.json does not answer, the page says so and keeps on asking, without an error of its own."""
    folder = files("penult.service.http") / "static"

    class Half(BaseHTTPRequestHandler):
        """The page's files, and nothing behind them."""

        def do_GET(self) -> None:
            name = self.path.strip("/") or "index.html"
            data = (folder / name).read_bytes() if name != "status.json" else b"gone"
            self.send_response(200)
            self.send_header(
                "content-type", {"html": "text/html", "css": "text/css"}.get(name.rpartition(".")[2], "text/javascript")
            )
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Half) as half:
        Thread(target=half.serve_forever, daemon=True).start()
        page = browse(f"http://127.0.0.1:{half.server_port}/", tmp_path, "--dump-dom")
        half.shutdown()
    assert re.search(r'id="state"[^>]*>no answer<', page)
    assert "The server does not answer. This page retries every five seconds." in page


def test_probes_and_streams_are_no_latency():
    """Probes count as no requests; how long a stream lasts, or a probe takes, is no answer's time."""
    metrics = Metrics(CollectorRegistry())
    status = Status(metrics, lambda: "ready")
    for name in ("Classify", "http.ServerReady", "StreamClassify"):
        metrics.requests.labels("", "", name, "OK")
    status.sample()
    for method, seconds in (("Classify", 0.04), ("http.ServerReady", 0.0001), ("StreamClassify", 9.0)):
        metrics.requests.labels("", "", method, "OK").inc()
        metrics.request_seconds.labels(method).observe(seconds)
    time.sleep(0.6)
    status.sample()
    told = status.as_json()
    assert told["total"]["requests"] == 2
    assert 25 <= told["load"]["p50_ms"] <= told["load"]["p99_ms"] <= 50
    assert told["history"]["p99_ms"] == [pytest.approx(told["load"]["p99_ms"])]


def test_looking_costs_little_whatever_a_model_has():
    """With a thousand classes and ten minutes behind it, a look transfers the first hundred only."""
    told = status_of_a_thousand_classes().as_json()
    (model,) = told["models"]
    assert len(model["classes"]) == 100
    assert model["classes_left_out"] == {"count": 900, "share": pytest.approx(0.9)}
    assert len(json.dumps(told)) < 20_000
    assert len(told["history"]["p99_ms"]) == 120


def test_quantiles_are_those_of_prometheus():
    """Half of what lies evenly within one bucket is in its middle; nothing is known of nothing."""
    metrics = Metrics(CollectorRegistry())
    before = take(metrics.samples(["penult_request_seconds"]))
    for _ in range(10):
        metrics.request_seconds.labels("Classify").observe(0.07)
    after = take(metrics.samples(["penult_request_seconds"]))
    assert MetricDelta(before, after).quantiles_ms(0.5, 1) == [pytest.approx(75), pytest.approx(100)]
    assert MetricDelta(after, after).quantiles_ms(0.5) == [None]
