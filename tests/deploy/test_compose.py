"""deploy/compose.yaml: right by its schema, true of the code, and its commands run."""

import copy
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import httpx
import numpy as np
import pytest

from penult.client import Client, NewItem
from penult.service.config import ServeConfig

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SECRETS = {"LOOKUP_PASSWORD": "abc123", "GRAFANA_PASSWORD": "def456"}
UNITS = {"M": 2**20, "G": 2**30}


def filled(text: str) -> str:
    """A compose file with its ${VARIABLE:?what to do} filled in."""
    return re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: SECRETS[found[1]], text)


@pytest.fixture(scope="session")
def compose(tools) -> dict:
    """compose.yaml as the engine sees it."""
    return tools.load(filled((DEPLOY / "compose.yaml").read_text()))[0]


@pytest.fixture(scope="session")
def for_gpus(tools) -> dict:
    """What compose.gpu.yaml changes."""
    return tools.load((DEPLOY / "compose.gpu.yaml").read_text())[0]


@pytest.fixture(scope="session")
def penult(compose, image_environment, read_settings) -> ServeConfig:
    """The settings that penult has there."""
    service = compose["services"]["penult"]
    return read_settings(service["command"], image_environment | service["environment"])


def seconds(text: str) -> int:
    """A duration of compose files."""
    return int(text.removesuffix("s"))


def test_the_schema_has_nothing_to_say(compose, for_gpus, tools):
    """Both files are what the Compose Specification allows."""
    assert tools.complaints([compose, for_gpus]) == []


def test_the_schema_notices_what_is_wrong(compose, tools):
    """A misspelt key is a complaint."""
    broken = copy.deepcopy(compose)
    broken["services"]["penult"]["read_onli"] = True
    assert len(tools.complaints([broken])) == 1


def test_without_passwords_it_says_what_to_do():
    """No password has a default; the message names a page that says how to make them."""
    found = re.findall(r"\$\{(\w+)(:\?)?([^}]*)\}", (DEPLOY / "compose.yaml").read_text())
    assert {name for name, _, _ in found} == set(SECRETS)
    assert all(sign == ":?" and "docs/deploying.md" in told for _, sign, told in found)
    page = (ROOT / "docs" / "deploying.md").read_text()
    assert all(f"{name}=" in page for name in SECRETS)
    assert "/deploy/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_every_service_is_hardened(compose):
    """Read-only, nobody's root, no capabilities, a health check, limits; ports on this machine only."""
    assert set(compose["services"]) == {"penult", "lookup", "prometheus", "grafana"}
    for name, service in compose["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["user"].partition(":")[0]) > 0, name
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert set(service["deploy"]["resources"]["limits"]) >= {"cpus", "memory", "pids"}, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert not service["image"].endswith(":latest"), name
        assert ":" in service["image"], name


def test_services_wait_for_health(compose):
    """Who needs another waits until that is healthy, and everybody is reached from grafana or needs nobody."""
    needs = {name: service.get("depends_on", {}) for name, service in compose["services"].items()}
    assert all(how["condition"] == "service_healthy" for each in needs.values() for how in each.values())
    assert {name: set(each) for name, each in needs.items()} == {
        "penult": {"lookup"}, "prometheus": {"penult"}, "grafana": {"prometheus"}, "lookup": set(),
    }  # fmt: skip


def test_mounts_are_there(compose):
    """What is bound in exists below deploy/ and is read-only; what is kept has a named volume."""
    named = set()
    for service in compose["services"].values():
        for volume in service["volumes"]:
            if isinstance(volume, dict):
                assert (DEPLOY / volume["source"]).exists(), volume
                assert volume["read_only"], volume
            else:
                named.add(volume.partition(":")[0])
    assert named == set(compose["volumes"]) == {"collections", "metrics", "boards"}


def test_penult_is_as_the_code_has_it(compose, for_gpus, penult, dockerfile):
    """Image, user, ports, variables, models, threads, grace and memory agree with Dockerfile and settings."""
    service = compose["services"]["penult"]
    assert service["user"] == dockerfile["USER"][0]
    assert {int(port.rpartition(":")[2]) for port in service["ports"]} == {penult.port, penult.metrics_port}
    known = {f"PENULT_{field.name.upper()}" for field in fields(ServeConfig)}
    changed = for_gpus["services"]["penult"]
    assert set(service["environment"]) | set(changed["environment"]) <= known
    assert str(penult.models) in {volume["target"] for volume in service["volumes"]}
    assert (penult.host, penult.http) == ("0.0.0.0", True)
    assert penult.drain_lead + penult.grace < seconds(service["stop_grace_period"])
    for one in (service, changed):
        limits = one["deploy"]["resources"]["limits"]
        assert one["environment"]["PENULT_THREADS"] == limits["cpus"]
        queue = int(one["environment"]["PENULT_QUEUE_MAX_IMAGES"])
        limit = int(limits["memory"][:-1]) * UNITS[limits["memory"][-1]]
        waiting = min(queue * penult.image_max_bytes, int(one["environment"]["PENULT_QUEUE_MAX_BYTES"]))
        decoding = 4 * max(penult.decode_max_pixels, penult.image_max_decoded_pixels)
        assert waiting + decoding + 400 * 2**20 < limit
    text = (ROOT / "Dockerfile").read_text()
    for each in (service, changed):
        assert (DEPLOY / each["build"]["context"] / "Dockerfile").is_file()
        assert f" AS {each['build']['target']}\n" in text
        assert each["image"] == f"penult:{each['build']['target']}"


def test_images_can_ask_postgresql():
    """What the images install has the client of the store that compose.yaml brings."""
    for target in ("cpu", "gpu"):
        locked = re.findall(r"^([a-z0-9-]+)==", (ROOT / "locks" / f"{target}.txt").read_text(), re.MULTILINE)
        assert {"psycopg", "psycopg-binary", "psycopg-pool", "pgvector"} <= set(locked)


def test_the_store_is_the_one_that_is_asked(compose, penult):
    """penult's address of the store has its service's name, user, database and password."""
    store = compose["services"]["lookup"]["environment"]
    account = f"{store['POSTGRES_USER']}:{store['POSTGRES_PASSWORD']}"
    assert penult.lookup == f"postgresql://{account}@lookup/{store['POSTGRES_DB']}"


@pytest.fixture(scope="session")
def image_packages(environment, tmp_path_factory) -> tuple[Path, Path]:
    """What the Dockerfile installs for CPUs, and nothing else: a Python with the locked packages, and penult's wheel."""
    folder = tmp_path_factory.mktemp("image")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(folder / "packages")
    return environment("cpu"), folder / "packages"


@pytest.fixture
def running(compose, image_environment, image_packages, quick, start, make_database):
    """penult as compose.yaml starts it, of what its image installs; the store a real PostgreSQL."""
    service, (python, packages) = compose["services"]["penult"], image_packages
    environment = image_environment | service["environment"] | {"PENULT_LOOKUP": make_database()}
    environment["PYTHONPATH"] = str(packages)
    return start(service["command"], environment, {"/models": quick}, python=python)


def test_penult_runs_and_is_healthy(compose, running, dockerfile):
    """Its command serves, with what its image installs and a real PostgreSQL for its store; its health check, the
    image's too, passes until it ends.
    """  # fmt: skip
    photo = np.full((8, 8, 3), 200, dtype=np.uint8)
    with Client(f"127.0.0.1:{running.ports[50051]}") as client:
        assert client.classify([photo]).results[0].label == "bright"
        assert client.put_items("seen", [NewItem("a", photo)]) == (None,)
    service = compose["services"]["penult"]
    in_image = json.loads(re.search(r"CMD (\[.*\])", dockerfile["HEALTHCHECK"][0])[1])
    assert service["healthcheck"]["test"][1:] == in_image
    assert is_healthy(in_image, running.ports[50051])
    running.process.kill()
    running.process.wait()
    assert not is_healthy(in_image, running.ports[50051])


def is_healthy(command: list[str], port: int) -> bool:
    """Whether a health check ends well, of a server that listens on this port instead of the usual one."""
    assert command[0] == "python"
    told = os.environ | {"PENULT_HOST": "0.0.0.0", "PENULT_PORT": str(port)}
    return (
        subprocess.run(
            [sys.executable, *command[1:]], env=told, capture_output=True, timeout=30, check=False
        ).returncode
        == 0
    )


@pytest.fixture
def start_prometheus(compose, tmp_path) -> Callable[[int], str]:
    """Start Prometheus as compose.yaml does, penult's name mapped to a port of this machine; return its address."""
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is not installed (Debian's package of that name)")
    service, processes = compose["services"]["prometheus"], []

    def run(port: int) -> str:
        (config,) = (volume for volume in service["volumes"] if isinstance(volume, dict))
        shutil.copytree(DEPLOY / config["source"], tmp_path / "etc")
        file = tmp_path / "etc" / "compose.yml"
        assert "penult:9095" in file.read_text()
        file.write_text(file.read_text().replace("penult:9095", f"127.0.0.1:{port}").replace("15s", "1s"))
        folders = {config["target"]: tmp_path / "etc", "=/prometheus": f"={tmp_path}/data"}
        command = service["command"]
        for path, folder in folders.items():
            command = [word.replace(path, str(folder)) for word in command]
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        with (tmp_path / "prometheus.log").open("w") as log:
            processes.append(subprocess.Popen(
                ["prometheus", *command, f"--web.listen-address={address}"], stdout=log, stderr=log
            ))  # fmt: skip
        return f"http://{address}"

    yield run
    for process in processes:
        process.terminate()
        process.wait(20)


def until(ask: Callable[[], object], what: str) -> object:
    """Ask until there is an answer, a minute at most."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if answer := ask():
                return answer
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(what)


def test_prometheus_watches_penult(compose, running, start_prometheus):
    """A real Prometheus with compose.yaml's command and files becomes ready, has the rules, and finds penult up."""
    address = start_prometheus(running.ports[9095])
    (probe,) = (word for word in compose["services"]["prometheus"]["healthcheck"]["test"] if word.startswith("http"))
    until(lambda: httpx.get(probe.replace("http://127.0.0.1:9090", address)).status_code == 200, "not ready")
    groups = httpx.get(f"{address}/api/v1/rules").json()["data"]["groups"]
    assert sum(rule["type"] == "alerting" for group in groups for rule in group["rules"]) >= 10

    def is_up() -> bool:
        asked = httpx.get(f"{address}/api/v1/query", params={"query": 'up{job="penult"}'}).json()["data"]["result"]
        return [result["value"][1] for result in asked] == ["1"]

    until(is_up, "penult is not up")


def test_grafana_finds_data_and_dashboard(compose, tools):
    """The source is compose's Prometheus; the dashboard lies where the provider looks, and asks the default source."""
    provisioning = DEPLOY / "grafana" / "provisioning"
    (sources,) = tools.load((provisioning / "datasources" / "prometheus.yaml").read_text())
    (source,) = sources["datasources"]
    port = compose["services"]["prometheus"]["ports"][0].rpartition(":")[2]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", f"http://prometheus:{port}", True)
    (boards,) = tools.load((provisioning / "dashboards" / "penult.yaml").read_text())
    targets = {volume["target"]: DEPLOY / volume["source"] for volume in compose["services"]["grafana"]["volumes"][:2]}
    assert targets["/etc/grafana/provisioning"] == provisioning
    dashboard = targets[f"{boards['providers'][0]['options']['path']}/penult.json"]
    asked = json.loads(dashboard.read_text())["templating"]["list"][0]
    assert (asked["type"], asked["query"]) == ("datasource", source["type"])
