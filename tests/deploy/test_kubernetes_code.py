"""What the Kubernetes and KServe manifests say is true of the code."""

import json
import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from penult.service.config import ServeConfig
from penult.service.observability.metrics import Metrics
from penult.service.process.server import LIVE_NAME

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = {"Mi": 2**20, "Gi": 2**30, "": 1}


def amount(text: str) -> float:
    """A quantity of Kubernetes, as a number: bytes or cores."""
    number, unit = re.fullmatch(r"(\d+)(\w*)", text).groups()
    return int(number) * UNITS[unit]


def test_ports_are_the_services(documents, kserve, dockerfile):
    """Container ports are those that the image exposes, which are the service's defaults."""
    exposed = {int(port) for port in dockerfile["EXPOSE"][0].split()}
    defaults = ServeConfig()
    assert exposed == {defaults.port, defaults.metrics_port}
    assert {port["containerPort"] for port in documents.container["ports"]} == exposed
    assert {port["containerPort"] for container in kserve.runtimes for port in container["ports"]} == exposed


def test_the_user_is_the_images(documents, kserve, dockerfile):
    """Pods run as the image's user and group."""
    (user,) = dockerfile["USER"]
    context = documents.pod["spec"]["securityContext"]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == user
    assert context["fsGroup"] == context["runAsGroup"]
    contexts = [container["securityContext"] for container in kserve.runtimes]
    assert {f"{context['runAsUser']}" for context in contexts} == {user.partition(":")[0]}


def test_containers_may_nothing(documents, kserve):
    """No root, no new rights, no capabilities, nothing to write to, the runtime's seccomp profile, limits on all."""
    pod = documents.pod["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    for container in [*pod["containers"], *pod.get("initContainers", []), *kserve.runtimes]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert set(container["resources"]["limits"]) >= {"cpu", "memory"}
        assert set(container["resources"]["requests"]) >= {"cpu", "memory"}


def test_variables_are_settings(documents, kserve):
    """Every PENULT_ variable is a setting; those still to come are named by their components only."""
    known = {f"PENULT_{field.name.upper()}" for field in fields(ServeConfig)}
    for container in [documents.container, *kserve.runtimes]:
        assert {variable["name"] for variable in container["env"]} <= known
    secret = re.compile(r"PENULT_(TLS|TOKENS|TRUSTED|ALLOW)")
    users = {path.parent.name for path in DEPLOY.rglob("*.yaml") if secret.search(path.read_text())}
    assert users == {"tls", "access"}


def test_settings_fit_the_pod(documents, settings):
    """Models lie where they are mounted, everybody is listened to, a thread for each core of the limit."""
    container, pod = documents.container, documents.pod["spec"]
    config = settings(container)
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts[str(config.models)]["readOnly"]
    assert config.host == "0.0.0.0"
    assert config.threads == amount(container["resources"]["limits"]["cpu"])
    assert config.drain_lead + config.grace < pod["terminationGracePeriodSeconds"]
    # Endpoints must be gone before the lead is over: two missed probes, at worst, and a second or two to spread.
    assert config.drain_lead >= 5


def test_kserve_settings_fit(kserve, settings):
    """Models lie where KServe puts them, /mnt/models; grace fits into the 30 s that pods have where nothing is said."""
    for runtime in kserve.all("ServingRuntime"):
        (container,) = runtime["spec"]["containers"]
        config = settings(container)
        assert container["name"] == "kserve-container"
        assert (str(config.models), config.host, config.lookup) == ("/mnt/models", "0.0.0.0", "off")
        assert config.threads == amount(container["resources"]["limits"]["cpu"])
        assert config.drain_lead + config.grace < 30
        assert config.http == (runtime["spec"]["protocolVersions"] == ["v2"])


def test_memory_holds_what_may_wait(documents, kserve, settings):
    """The limit holds the longest queue, what decodes at one time, and the process itself."""
    for container in [documents.container, *kserve.runtimes]:
        config = settings(container)
        # bench/RESULTS.md: 358 MB resident.
        waiting = min(config.queue_max_images * config.image_max_bytes, config.queue_max_bytes)
        decoding = 4 * max(config.decode_max_pixels, config.image_max_decoded_pixels)
        assert waiting + decoding + 400 * 2**20 < amount(container["resources"]["limits"]["memory"])


def test_probe_names_are_the_services(documents, kserve):
    """gRPC probes ask for names that the service answers: "" for ready, its own name for alive."""
    for container in [documents.container, *kserve.runtimes]:
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container.get(kind, {}).get("grpc")
            if asked:
                assert asked["service"] == ("" if kind == "readinessProbe" else LIVE_NAME)


def test_images_are_the_dockerfiles(build_with, kserve, dockerfile):
    """The overlays' images are the Dockerfile's two targets, and the GPU's refuses to start without one."""
    text = (ROOT / "Dockerfile").read_text()
    for target in ("cpu", "gpu"):
        container = build_with(target).container
        assert container["image"] == f"penult:{target}"
        assert f" AS {target}\n" in text
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (target == "gpu")
    assert "PENULT_DEVICE=cuda" in " ".join(dockerfile["ENV"]).split()
    assert {container["image"] for container in kserve.runtimes} == {"penult:cpu"}


def test_inference_services_find_their_runtime(kserve):
    """Each names a runtime that there is, with a format and a protocol of it, and no single bundle as storage."""
    runtimes = {runtime["metadata"]["name"]: runtime["spec"] for runtime in kserve.all("ServingRuntime")}
    used = set()
    for service in kserve.all("InferenceService"):
        model = service["spec"]["predictor"]["model"]
        runtime = runtimes[model["runtime"]]
        assert model["modelFormat"]["name"] in {known["name"] for known in runtime["supportedModelFormats"]}
        assert model["protocolVersion"] in runtime["protocolVersions"]
        assert service["metadata"]["name"] not in model["storageUri"]
        used.add(model["runtime"])
    assert used == set(runtimes)


# -- the autoscaler's metric -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def rule(tools) -> dict:
    """prometheus-adapter's rule."""
    ((values,),) = (tools.load((DEPLOY / "kubernetes" / "prometheus-adapter.yaml").read_text()),)
    (found,) = values["rules"]["custom"]
    return found


def test_the_autoscalers_metric_is_real(documents, rule, settings):
    """It is a gauge of the service, under the name that prometheus-adapter's rule gives it."""
    autoscaler = documents.one("HorizontalPodAutoscaler")
    (metric,) = autoscaler["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert {family.name: family.type for family in Metrics(CollectorRegistry()).registry.collect()}[name] == "gauge"
    assert re.match(rule["name"]["matches"], name)
    assert rule["name"]["as"] == name
    assert rule["seriesQuery"].partition("{")[0] == name
    assert int(metric["pods"]["target"]["averageValue"]) < settings(documents.container).queue_max_images


def test_the_adapters_query_is_promql(rule, tmp_path):
    """With its blanks filled in as prometheus-adapter does, promtool takes the query."""
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    filled = rule["metricsQuery"].replace("<<.Series>>", "penult_queue_depth")
    filled = filled.replace("<<.LabelMatchers>>", 'namespace="penult",pod=~"a|b"').replace("<<.GroupBy>>", "pod")
    assert "<<" not in filled
    rules = {"groups": [{"name": "adapter", "rules": [{"record": "asked", "expr": filled}]}]}
    (tmp_path / "rules.json").write_text(json.dumps(rules))
    command = ["promtool", "check", "rules", tmp_path / "rules.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_know_the_job(documents):
    """The monitor's job is the one that alerts and dashboard ask for."""
    monitor = documents.one("PodMonitor")
    job = documents.pod["metadata"]["labels"][monitor["spec"]["jobLabel"]]
    assert f'up{{job="{job}"}}' in (DEPLOY / "prometheus" / "penult.rules.yml").read_text()
