"""What the Kubernetes and KServe manifests say is right by the schemas, agrees with itself, and is true of the code."""

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from penult.service.config import ServeConfig
from penult.service.metrics import Metrics
from penult.service.server import LIVE_NAME

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPONENTS = sorted(path.name for path in (DEPLOY / "kubernetes" / "components").iterdir())
CLASHING = "models-from-image"
# Named by components/tls and components/access only; the service has them from issue 9's other half on.
COMING = {"tls_cert", "tls_key", "tls_client_ca", "tokens", "trusted_key", "allow_unsigned"}
BUILDS = [
    ("cpu",), ("gpu",), *(("cpu", name) for name in COMPONENTS if name != "autoscaling"),
    ("gpu", "access", "lookup", CLASHING, "tls"),
]  # fmt: skip
UNITS = {"Mi": 2**20, "Gi": 2**30, "": 1}


@pytest.fixture(scope="session", params=BUILDS, ids="+".join)
def documents(request, build_with) -> list[dict]:
    """Everything that an overlay with some components applies."""
    return build_with(*request.param)


@pytest.fixture(scope="session")
def kserve(tools) -> list[dict]:
    """The runtimes and both InferenceServices."""
    grpc_service = tools.load((DEPLOY / "kserve" / "inferenceservice-grpc.yaml").read_text())
    return [*tools.build(DEPLOY / "kserve"), *grpc_service]


def of_kind(documents: list[dict], kind: str) -> list[dict]:
    """The documents of a kind; there is one at least."""
    found = [document for document in documents if document["kind"] == kind]
    assert found, kind
    return found


def pod_of(documents: list[dict]) -> dict:
    """The pod template of the only Deployment."""
    (deployment,) = of_kind(documents, "Deployment")
    return deployment["spec"]["template"]


def container_of(documents: list[dict]) -> dict:
    """penult's container."""
    (container,) = pod_of(documents)["spec"]["containers"]
    return container


def amount(text: str) -> float:
    """A quantity of Kubernetes, as a number: bytes or cores."""
    number, unit = re.fullmatch(r"(\d+)(\w*)", text).groups()
    return int(number) * UNITS[unit]


def variables_of(container: dict) -> dict[str, str]:
    """The container's environment as the kubelet makes it; secrets get a value that parses."""
    found = {}
    for variable in container.get("env", []):
        assert ("value" in variable) != ("valueFrom" in variable), variable
        origin = variable.get("valueFrom", {})
        if "resourceFieldRef" in origin:
            assert origin["resourceFieldRef"]["divisor"] == "1"
            value = container["resources"]["limits"][origin["resourceFieldRef"]["resource"].removeprefix("limits.")]
        elif "secretKeyRef" in origin:
            value = "postgresql://user:secret@host/database"
        else:
            value = variable["value"]
        found[variable["name"]] = value
    return found


@pytest.fixture(scope="session")
def settings(image_environment, read_settings) -> Callable[[dict], ServeConfig]:
    """The settings that a container's penult has, those that are still to come left out."""

    def read(container: dict) -> ServeConfig:
        environment = image_environment | variables_of(container)
        known = {name for name in environment if name.removeprefix("PENULT_").lower() not in COMING}
        return read_settings(container["args"], {name: environment[name] for name in known})

    return read


def matches(selector: dict, labels: dict) -> bool:
    """Whether a selector of labels picks something out."""
    assert selector, "an empty selector picks everything"
    return selector.items() <= labels.items()


# -- schemas -----------------------------------------------------------------------------------------------------------


def test_schemas_have_nothing_to_say(build_with, tools):
    """Each overlay, with each component and with all of them, is right for Kubernetes 1.27 to 1.37."""
    built = [json.dumps(document) for overlay, *components in BUILDS for document in build_with(overlay, *components)]
    assert tools.complaints([json.loads(document) for document in set(built)]) == []


def test_kserves_schemas_have_nothing_to_say(kserve, tools):
    """Runtimes and services are what KServe's SDK knows."""
    assert {document["kind"] for document in kserve} == {"ServingRuntime", "InferenceService"}
    assert tools.complaints(kserve) == []


BREAKS = {
    "Deployment": (("spec", "template", "spec", "terminationGracePeriodSeconds"), "sixty"),
    "NetworkPolicy": (("spec", "polycyTypes"), []),
    "HorizontalPodAutoscaler": (("spec", "maxReplicas"), "ten"),
    "PodMonitor": (("spec", "jobLable"), "app"),
    "ServingRuntime": (("spec", "supportedModelFormat"), []),
    "InferenceService": (("spec", "predictor", "model", "modelFormat"), "penult"),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_schemas_notice_what_is_wrong(kind, build_with, kserve, tools):
    """A misspelt field or a value of the wrong type, in each kind of schema, is a complaint."""
    broken = copy.deepcopy(of_kind([*build_with("cpu"), *kserve], kind)[0])
    path, value = BREAKS[kind]
    place = broken
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert len(tools.complaints([broken])) >= 1


def test_no_component_is_forgotten():
    """Every component is built above, and every file belongs to a kustomization."""
    assert set(COMPONENTS) == {"autoscaling"} | {name for build in BUILDS for name in build[1:]}
    for folder in (DEPLOY / "kubernetes").rglob("kustomization.yaml"):
        text = folder.read_text()
        assert [path.name for path in folder.parent.glob("*.yaml") if path != folder and path.name not in text] == []


# -- agreeing with itself ----------------------------------------------------------------------------------------------


def test_selectors_match(documents):
    """Services, budget, policies, spread and monitor pick penult's pods, and the autoscaler its Deployment."""
    labels = pod_of(documents)["metadata"]["labels"]
    (deployment,) = of_kind(documents, "Deployment")
    assert matches(deployment["spec"]["selector"]["matchLabels"], labels)
    assert len(of_kind(documents, "Service")) == 2
    assert all(matches(service["spec"]["selector"], labels) for service in of_kind(documents, "Service"))
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        assert all(matches(found["spec"]["selector"]["matchLabels"], labels) for found in of_kind(documents, kind))
    for policy in of_kind(documents, "NetworkPolicy"):
        assert matches(policy["spec"]["podSelector"]["matchLabels"], labels)
    spread = pod_of(documents)["spec"]["topologySpreadConstraints"]
    assert all(matches(constraint["labelSelector"]["matchLabels"], labels) for constraint in spread)
    (autoscaler,) = of_kind(documents, "HorizontalPodAutoscaler")
    assert autoscaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]


def test_everything_is_in_one_namespace(documents):
    """All that has a namespace is in the one that is made, which refuses pods that ask for more rights."""
    (namespace,) = of_kind(documents, "Namespace")
    assert {d["metadata"]["namespace"] for d in documents if d["kind"] != "Namespace"} == {
        namespace["metadata"]["name"]
    }
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_names_that_refer_are_there(documents):
    """Mounts have volumes, claims and accounts exist, named ports are the container's."""
    pod, container = pod_of(documents)["spec"], container_of(documents)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for mounting in [container, *pod.get("initContainers", [])]:
        assert {mount["name"] for mount in mounting["volumeMounts"]} <= set(volumes)
    claims = {d["metadata"]["name"] for d in documents if d["kind"] == "PersistentVolumeClaim"}
    wanted = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
    assert wanted == claims
    assert pod["serviceAccountName"] in {d["metadata"]["name"] for d in of_kind(documents, "ServiceAccount")}
    ports = {port["name"] for port in container["ports"]}
    assert {
        port["targetPort"] for service in of_kind(documents, "Service") for port in service["spec"]["ports"]
    } <= ports
    (monitor,) = of_kind(documents, "PodMonitor")
    assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= ports


def test_one_service_has_no_address(documents):
    """One Service is headless, so that its name resolves to every ready pod; the other is not."""
    addresses = {s["metadata"]["name"]: s["spec"].get("clusterIP") for s in of_kind(documents, "Service")}
    assert addresses == {"penult-headless": "None", "penult": None}
    assert not any(s["spec"].get("publishNotReadyAddresses") for s in of_kind(documents, "Service"))


def test_the_network_is_as_narrow_as_it_looks(documents):
    """In: 50051 and 9095, the latter from one namespace only. Out: names, and PostgreSQL where that is asked for."""
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind(documents, "NetworkPolicy")}
    own = policies["penult"]
    assert set(own["policyTypes"]) == {"Ingress", "Egress"}
    let_in = {port["port"]: rule["from"] for rule in own["ingress"] for port in rule["ports"]}
    assert set(let_in) == {port["containerPort"] for port in container_of(documents)["ports"]}
    assert all(set(peer) == {"namespaceSelector"} for peer in let_in[9095])
    uses_store = "secretKeyRef" in json.dumps(container_of(documents))
    let_out = {port["port"] for spec in policies.values() for rule in spec["egress"] for port in rule["ports"]}
    assert let_out == ({53, 5432} if uses_store else {53})
    assert all(rule.get("to") for spec in policies.values() for rule in spec["egress"])


# -- true of the code --------------------------------------------------------------------------------------------------


def test_ports_are_the_services(documents, kserve, dockerfile):
    """Container ports are those that the image exposes, which are the service's defaults."""
    exposed = {int(port) for port in dockerfile["EXPOSE"][0].split()}
    defaults = ServeConfig()
    assert exposed == {defaults.port, defaults.metrics_port}
    assert {port["containerPort"] for port in container_of(documents)["ports"]} == exposed
    runtimes = [runtime["spec"]["containers"][0] for runtime in of_kind(kserve, "ServingRuntime")]
    assert {port["containerPort"] for container in runtimes for port in container["ports"]} == exposed


def test_the_user_is_the_images(documents, kserve, dockerfile):
    """Pods run as the image's user and group."""
    (user,) = dockerfile["USER"]
    context = pod_of(documents)["spec"]["securityContext"]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == user
    assert context["fsGroup"] == context["runAsGroup"]
    contexts = [runtime["spec"]["containers"][0]["securityContext"] for runtime in of_kind(kserve, "ServingRuntime")]
    assert {f"{context['runAsUser']}" for context in contexts} == {user.partition(":")[0]}


def test_containers_may_nothing(documents, kserve):
    """No root, no new rights, no capabilities, nothing to write to, the runtime's seccomp profile, limits on all."""
    pod = pod_of(documents)["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    runtimes = [runtime["spec"]["containers"][0] for runtime in of_kind(kserve, "ServingRuntime")]
    for container in [*pod["containers"], *pod.get("initContainers", []), *runtimes]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert set(container["resources"]["limits"]) >= {"cpu", "memory"}
        assert set(container["resources"]["requests"]) >= {"cpu", "memory"}


def test_variables_are_settings(documents, kserve):
    """Every PENULT_ variable is a setting; those still to come are named by their components only."""
    known = {f"PENULT_{field.name.upper()}" for field in fields(ServeConfig)}
    coming = {f"PENULT_{name.upper()}" for name in COMING}
    runtimes = [runtime["spec"]["containers"][0] for runtime in of_kind(kserve, "ServingRuntime")]
    for container in [container_of(documents), *runtimes]:
        assert {variable["name"] for variable in container["env"]} <= known | coming
    users = {path.parent.name for path in DEPLOY.rglob("*.yaml") if any(name in path.read_text() for name in coming)}
    assert users == {"tls", "access"}


def test_settings_fit_the_pod(documents, settings):
    """Models lie where they are mounted, everybody is listened to, a thread for each core of the limit."""
    container, pod = container_of(documents), pod_of(documents)["spec"]
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
    for runtime in of_kind(kserve, "ServingRuntime"):
        (container,) = runtime["spec"]["containers"]
        config = settings(container)
        assert container["name"] == "kserve-container"
        assert (str(config.models), config.host, config.lookup) == ("/mnt/models", "0.0.0.0", "off")
        assert config.threads == amount(container["resources"]["limits"]["cpu"])
        assert config.drain_lead + config.grace < 30
        assert config.http == (runtime["spec"]["protocolVersions"] == ["v2"])


def test_memory_holds_what_may_wait(documents, kserve, settings):
    """The limit holds the longest queue of the largest photos, what decodes at one time, and the process itself."""
    runtimes = [runtime["spec"]["containers"][0] for runtime in of_kind(kserve, "ServingRuntime")]
    for container in [container_of(documents), *runtimes]:
        config = settings(container)
        # bench/RESULTS.md: 358 MB resident; research: 7.6 bytes for each pixel that is decoded, at worst.
        worst = config.queue_max_images * config.image_max_bytes + 8 * config.decode_max_pixels + 400 * 2**20
        assert worst < amount(container["resources"]["limits"]["memory"])


def test_probe_names_are_the_services(documents, kserve):
    """gRPC probes ask for names that the service answers: "" for ready, its own name for alive."""
    runtimes = [runtime["spec"]["containers"][0] for runtime in of_kind(kserve, "ServingRuntime")]
    for container in [container_of(documents), *runtimes]:
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container.get(kind, {}).get("grpc")
            if asked:
                assert asked["service"] == ("" if kind == "readinessProbe" else LIVE_NAME)


def test_images_are_the_dockerfiles(build_with, kserve, dockerfile):
    """The overlays' images are the Dockerfile's two targets, and the GPU's refuses to start without one."""
    text = (ROOT / "Dockerfile").read_text()
    for target in ("cpu", "gpu"):
        container = container_of(build_with(target))
        assert container["image"] == f"penult:{target}"
        assert f" AS {target}\n" in text
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (target == "gpu")
    assert "PENULT_DEVICE=cuda" in dockerfile["ENV"]
    assert {runtime["spec"]["containers"][0]["image"] for runtime in of_kind(kserve, "ServingRuntime")} == {
        "penult:cpu"
    }


def test_inference_services_find_their_runtime(kserve):
    """Each names a runtime that there is, with a format and a protocol of it, and no single bundle as storage."""
    runtimes = {runtime["metadata"]["name"]: runtime["spec"] for runtime in of_kind(kserve, "ServingRuntime")}
    used = set()
    for service in of_kind(kserve, "InferenceService"):
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


def test_the_autoscalers_metric_is_real(documents, rule):
    """It is a gauge of the service, under the name that prometheus-adapter's rule gives it."""
    (autoscaler,) = of_kind(documents, "HorizontalPodAutoscaler")
    (metric,) = autoscaler["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert {family.name: family.type for family in Metrics(CollectorRegistry()).registry.collect()}[name] == "gauge"
    assert re.match(rule["name"]["matches"], name)
    assert rule["name"]["as"] == name
    assert rule["seriesQuery"].partition("{")[0] == name
    assert int(metric["pods"]["target"]["averageValue"]) < settings_queue(documents)


def settings_queue(documents: list[dict]) -> int:
    """How many photos may wait in a pod."""
    return int(variables_of(container_of(documents))["PENULT_QUEUE_MAX_IMAGES"])


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
    (monitor,) = of_kind(documents, "PodMonitor")
    job = pod_of(documents)["metadata"]["labels"][monitor["spec"]["jobLabel"]]
    assert f'up{{job="{job}"}}' in (DEPLOY / "prometheus" / "penult.rules.yml").read_text()
