"""What the Kubernetes and KServe manifests say is right by the schemas and agrees with itself."""

import copy
import json
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"


def matches(selector: dict, labels: dict) -> bool:
    """Whether a selector of labels picks something out."""
    assert selector, "an empty selector picks everything"
    return selector.items() <= labels.items()


# -- schemas -----------------------------------------------------------------------------------------------------------


def test_schemas_have_nothing_to_say(all_documents, tools):
    """Each overlay, with each component and with all of them, is right for Kubernetes 1.37; nightly for 1.27 on."""
    assert tools.complaints(all_documents) == []


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
    broken = copy.deepcopy(next(each for each in [*build_with("cpu"), *kserve] if each["kind"] == kind))
    path, value = BREAKS[kind]
    place = broken
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert len(tools.complaints([broken])) >= 1


def test_no_component_is_forgotten():
    """Every component is built above, and every file belongs to a kustomization."""
    for folder in (DEPLOY / "kubernetes").rglob("kustomization.yaml"):
        text = folder.read_text()
        assert [path.name for path in folder.parent.glob("*.yaml") if path != folder and path.name not in text] == []


# -- agreeing with itself ----------------------------------------------------------------------------------------------


def test_selectors_match(documents):
    """Services, budget, policies, spread and monitor pick penult's pods, and the autoscaler its Deployment."""
    labels = documents.pod["metadata"]["labels"]
    deployment = documents.one("Deployment")
    assert matches(deployment["spec"]["selector"]["matchLabels"], labels)
    assert len(documents.all("Service")) == 2
    assert all(matches(service["spec"]["selector"], labels) for service in documents.all("Service"))
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        assert all(matches(found["spec"]["selector"]["matchLabels"], labels) for found in documents.all(kind))
    for policy in documents.all("NetworkPolicy"):
        assert matches(policy["spec"]["podSelector"]["matchLabels"], labels)
    spread = documents.pod["spec"]["topologySpreadConstraints"]
    assert all(matches(constraint["labelSelector"]["matchLabels"], labels) for constraint in spread)
    autoscaler = documents.one("HorizontalPodAutoscaler")
    assert autoscaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]


def test_everything_is_in_one_namespace(documents):
    """All that has a namespace is in the one that is made, which refuses pods that ask for more rights."""
    namespace = documents.one("Namespace")
    assert {d["metadata"]["namespace"] for d in documents if d["kind"] != "Namespace"} == {
        namespace["metadata"]["name"]
    }
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_names_that_refer_are_there(documents):
    """Mounts have volumes, claims and accounts exist, named ports are the container's."""
    pod, container = documents.pod["spec"], documents.container
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for mounting in [container, *pod.get("initContainers", [])]:
        assert {mount["name"] for mount in mounting["volumeMounts"]} <= set(volumes)
    claims = {d["metadata"]["name"] for d in documents if d["kind"] == "PersistentVolumeClaim"}
    wanted = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
    assert wanted == claims
    assert pod["serviceAccountName"] in {d["metadata"]["name"] for d in documents.all("ServiceAccount")}
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for service in documents.all("Service") for port in service["spec"]["ports"]} <= ports
    monitor = documents.one("PodMonitor")
    assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= ports


def test_one_service_has_no_address(documents):
    """One Service is headless, so that its name resolves to every ready pod; the other is not."""
    addresses = {s["metadata"]["name"]: s["spec"].get("clusterIP") for s in documents.all("Service")}
    assert addresses == {"penult-headless": "None", "penult": None}
    assert not any(s["spec"].get("publishNotReadyAddresses") for s in documents.all("Service"))


def test_the_network_is_as_narrow_as_it_looks(documents):
    """In: 50051 and 9095, the latter from one namespace only. Out: names, and PostgreSQL where that is asked for."""
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in documents.all("NetworkPolicy")}
    own = policies["penult"]
    assert set(own["policyTypes"]) == {"Ingress", "Egress"}
    let_in = {port["port"]: rule["from"] for rule in own["ingress"] for port in rule["ports"]}
    assert set(let_in) == {port["containerPort"] for port in documents.container["ports"]}
    assert all(set(peer) == {"namespaceSelector"} for peer in let_in[9095])
    uses_store = "secretKeyRef" in json.dumps(documents.container)
    let_out = {port["port"] for spec in policies.values() for rule in spec["egress"] for port in rule["ports"]}
    assert let_out == ({53, 5432} if uses_store else {53})
    assert all(rule.get("to") for spec in policies.values() for rule in spec["egress"])
