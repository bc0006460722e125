"""Rules, alerts and the dashboard: right by promtool, of metrics that exist, and true of a real server and Prometheus."""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from penult.bundle.manifest import Manifest
from penult.bundle.operating_points import OperatingPoint
from penult.client import Client, Neighbours, NewItem, RequestFailed
from penult.service.observability.accuracy_metrics import FAMILIES
from penult.service.observability.metrics import Metrics
from penult.service.observability.shadow_metrics import FAMILIES as SHADOW_FAMILIES

ROOT = Path(__file__).parents[2]
RULES, CASES = ROOT / "deploy/prometheus/penult.rules.yml", ROOT / "deploy/prometheus/penult.rules.test.yml"
BOARD = json.loads((ROOT / "deploy/grafana/penult.json").read_text())
# The supervisor's, the GPU's, the process's own, and Prometheus'.
ELSEWHERE = {
    "penult_fronts_ready", "penult_front_deaths_total", "penult_gpu_memory_used_bytes", "penult_gpu_memory_total_bytes",
    "penult_gpu_utilization_ratio", "process_cpu_seconds_total", "process_resident_memory_bytes", "up",
}  # fmt: skip


def panels() -> list[dict]:
    """The dashboard's panels, without the rows between them."""
    return [panel for panel in BOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[tuple[str, str]]:
    """(panel's title, expression) with the dashboard's variables filled in."""
    filled = {"$job": ".*", "$instance": ".*", "$model": ".*", "$__rate_interval": "30s"}
    found = []
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in filled.items():
                expression = expression.replace(name, value)
            found.append((panel["title"], expression))
    return found


def promtool(*arguments: object, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run promtool."""
    return subprocess.run(
        ["promtool", *map(str, arguments)], input=given, capture_output=True, text=True, timeout=60, check=False
    )


def names_known() -> set[str]:
    """Every series name that a server, its supervisor or the rules give."""
    found = set(ELSEWHERE) | set(re.findall(r"record: (\S+)", RULES.read_text()))
    for metric in vars(Metrics(CollectorRegistry())).values():
        if hasattr(metric, "describe"):
            name = next(iter(metric.describe())).name
            endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
            found |= {name + ending for ending in endings[metric._type]}
    return found | set(FAMILIES) | set(SHADOW_FAMILIES)


@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", RULES), ("check", "config", RULES.parent / "prometheus.yml"), ("test", "rules", CASES)],
)
def test_promtool_is_content(arguments):
    """Rules and configuration are right, and each alert's cases pass."""
    done = promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_both_cases():
    """Every alert is shown to fire and shown to be quiet."""
    alerts = set(re.findall(r"alert: (\w+)", RULES.read_text()))
    cases = CASES.read_text()
    assert len(alerts) >= 10
    fires = set(re.findall(r"alertname: (\w+)\n\s+eval_time: \w+\n\s+exp_alerts: \[\{", cases))
    is_quiet = set(re.findall(r"alertname: (\w+), eval_time: \w+, exp_alerts: \[\]", cases))
    assert fires == is_quiet == alerts


def test_the_cases_can_fail(tmp_path):
    """With a threshold moved, the cases of that alert do not pass."""
    (tmp_path / CASES.name).write_text(CASES.read_text())
    (tmp_path / RULES.name).write_text(
        RULES.read_text().replace("penult:faults:share5m > 0.01", "penult:faults:share5m > 0.9")
    )
    assert promtool("test", "rules", tmp_path / CASES.name).returncode == 1


def test_every_name_is_there():
    """Rules, alerts and panels ask for no metric that nobody gives."""
    texts = [RULES.read_text(), *(expression for _, expression in expressions())]
    asked = {name for text in texts for name in re.findall(r"\b(?:penult|process)[_:][a-z0-9_:]+", text)}
    asked -= {"penult_baseline_"}  # the pattern in a comment
    assert asked - names_known() - {"penult-records"} == set()


def test_panels_say_what_they_show():
    """Each has a title, a description and a unit, and all fit into 24 columns without overlap."""
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells


@pytest.fixture(scope="module")
def scraped(copy_model, start_server, tmp_path_factory, digits):
    """A server of digits and a real Prometheus that has scraped it under load for a while: (server, query)."""
    folder = tmp_path_factory.mktemp("prometheus")
    manifest = copy_model(folder) / "1" / "manifest.json"
    point = OperatingPoint("svm", 0.05, (0.9,), photos=100, answered=60, wrong=1, is_default=True)
    manifest.write_bytes(replace(Manifest.from_json(manifest.read_bytes()), operating_points=(point,)).to_json())
    server = start_server(folder, "--lookup", str(folder / "lookup"), "--queue-max-images", "40")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        f"rule_files: ['{RULES}']\n"
        "scrape_configs:\n- job_name: penult\n  static_configs:\n"
        f"  - targets: ['{server.http.removeprefix('http://')}']\n"
    )
    command = [
        "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            load(server, digits, until=lambda: has_seen_all(port))
            yield server, lambda expression: query(port, expression)
        finally:
            process.terminate()


def has_seen_all(port: int) -> bool:
    """Whether Prometheus has answers to everything that the tests below ask."""
    with suppress(httpx.TransportError):
        return not missing(lambda expression: query(port, expression)) and bool(query(port, "ALERTS"))
    return False


def missing(ask: Callable[[str], list[dict]]) -> list[str]:
    """Return the panels and records without data, but those of GPUs, which are not here."""
    records = [(name, name) for name in re.findall(r"record: (\S+)", RULES.read_text())]
    return [title for title, e in (*expressions(), *records) if "penult_gpu" not in e and not ask(e)]


def load(server, digits, until: Callable[[], bool]) -> None:
    """Send all kinds of requests, good and bad, until something is so, three minutes at most."""
    photos = [path for digit in "0123456789" for path in sorted((digits / "test" / digit).iterdir())[:5]]
    strange = list(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    with Client(server.target, retries=0) as client:
        client.put_items("seen", [NewItem(path.name, path) for path in photos])

        def some(number: int) -> None:
            with suppress(RequestFailed):
                answer = client.classify([*photos[number % 40 :][:5], *strange, b"broken"], scorer=("dense", "svm")[number % 2],
                                         neighbours=Neighbours("seen", 3))  # fmt: skip
                client.feedback([answer.truth(0, verdict="right"), answer.truth(1, "0")])
            with suppress(RequestFailed):
                client.classify(photos, model=("", "absent")[number % 5 == 0])

        end, number = time.monotonic() + 180, 0
        with ThreadPoolExecutor(4) as pool:
            while not until() and time.monotonic() < end:
                list(pool.map(some, range(number, number + 8)))
                number += 8


def query(port: int, expression: str) -> list[dict]:
    """What Prometheus finds, as its HTTP API tells it."""
    answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": expression}, timeout=10).json()
    assert answer["status"] == "success", answer
    return answer["data"]["result"]


def test_every_panel_and_record_has_data(scraped):
    """Scraped under load, each expression of the dashboard and each recorded series finds something."""
    _, ask = scraped
    assert missing(ask) == []
    assert float(ask("sum_over_time(up{job='penult'}[5m])")[0]["value"][1]) >= 3


def test_photos_of_noise_raise_the_novel_share(scraped):
    """Photos of noise raise the novel share, so that its alert waits."""
    _, ask = scraped
    assert float(ask("penult:novel:share30m")[0]["value"][1]) > 0.05
    assert {alert["metric"]["alertname"] for alert in ask("ALERTS")} >= {"PenultNovelInputs"}


def test_promtool_likes_the_metrics(scraped):
    """`promtool check metrics` has nothing to say of a server's metrics."""
    server, _ = scraped
    done = promtool("check", "metrics", given=httpx.get(f"{server.http}/metrics").text)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "penult_" in line or "grpc_" in line]
    assert (done.returncode in (0, 3), complaints) == (True, [])


@pytest.fixture(scope="module", autouse=True)
def tools():
    """Prometheus and promtool are Debian's; .ci/run installs them."""
    if not shutil.which("promtool"):
        pytest.skip("prometheus is not installed (Debian's package of that name)")
