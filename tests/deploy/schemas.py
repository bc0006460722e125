"""Reads YAML and holds manifests against the schemas of those who made them. Prints JSON.

`load`: standard input is YAML; prints its documents. `check`: standard input is a JSON list of documents; prints, for
each, a list of complaints. Run by an environment of its own (locks/deploy.txt), with the one of locks/deploy-models.txt
on PYTHONPATH. What each kind is held against:

- what Kubernetes has itself: its JSON schemas, strict, as kubernetes-validate carries them, from 1.27 on
- PodMonitor, PrometheusRule: cloudcoil's models, made from the Prometheus operator's CRDs
- ServingRuntime, InferenceService: KServe's own Python SDK: names, types and which fields must be there
- a compose file: compose-viz's models, made from compose-spec.json
"""

import ast
import json
import os
import re
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import yaml

# `make test-nightly`: the older ones too.
VERSIONS = ("1.27", "1.30", "1.33", "1.37")[0 if os.environ.get("PENULT_FULL") == "1" else -1 :]


def complaints(document: dict) -> list[str]:
    """Everything that is wrong with a document."""
    group = document.get("apiVersion", "").partition("/")[0]
    if "services" in document:
        return of_compose(document)
    if group == "monitoring.coreos.com":
        return of_prometheus_operator(document)
    if group == "serving.kserve.io":
        return of_kserve(document, KINDS[document["kind"]], document["kind"])
    return [said for version in VERSIONS for said in of_kubernetes(document, version)]


def of_kubernetes(document: dict, version: str) -> list[str]:
    """By the API server's own schemas."""
    import kubernetes_validate

    try:
        kubernetes_validate.validate(document, version, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return [f"Kubernetes {version}: {document.get('kind')}: {getattr(error, 'message', error)}"]
    return []


def of_prometheus_operator(document: dict) -> list[str]:
    """By its custom resources' models, which ignore what they do not know: so that must come back, too."""
    import pydantic
    from cloudcoil.models.prometheus_operator import v1

    try:
        read = getattr(v1, document["kind"]).model_validate(document)
    except pydantic.ValidationError as error:
        return [str(error)]
    back = read.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return [f"{document['kind']}: {path} is unknown" for path in unknown(document, back)]


def unknown(given: object, known: object, path: str = "") -> list[str]:
    """Where `given` has more than `known`."""
    if isinstance(given, dict) and isinstance(known, dict):
        return [where for key, value in given.items() for where in (
            unknown(value, known[key], f"{path}.{key}") if key in known else [f"{path}.{key}"])]  # fmt: skip
    if isinstance(given, list) and isinstance(known, list):
        pairs = enumerate(zip(given, known, strict=True))
        return [where for place, (one, other) in pairs for where in unknown(one, other, f"{path}[{place}]")]
    return []


def of_compose(document: dict) -> list[str]:
    """By the Compose Specification."""
    import pydantic
    from compose_viz.spec.compose_spec import ComposeSpecification

    try:
        ComposeSpecification.model_validate({key: value for key, value in document.items() if key[:2] != "x-"})
    except pydantic.ValidationError as error:
        return [str(error)]
    return []


KINDS = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}
PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object}
# Parts that are Kubernetes' own are held against its schemas, inside something that holds them.
WITHIN = {
    "V1Container": lambda part: {"containers": [part]},
    "V1Volume": lambda part: {"containers": [{"name": "a"}], "volumes": [part]},
    "V1ResourceRequirements": lambda part: {"containers": [{"name": "a", "resources": part}]},
}


@cache
def kserve_models() -> dict[str, tuple[dict, dict, set]]:
    """{class: (types, names, fields that must be there)}, out of the SDK's text: importing it needs half of PyPI."""
    found = {}
    folder = Path(find_spec("kserve").submodule_search_locations[0]) / "models"
    for path in folder.glob("v1*.py"):
        text = path.read_text()
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                tables = {
                    part.targets[0].id: ast.literal_eval(part.value)
                    for part in node.body
                    if isinstance(part, ast.Assign) and part.targets[0].id in ("openapi_types", "attribute_map")
                }
                must = set(re.findall(r"Invalid value for `(\w+)`, must not be `None`", text))
                found[node.name] = tables["openapi_types"], tables["attribute_map"], must
    return found


def of_kserve(part: object, kind: str, path: str) -> list[str]:
    """By the SDK's tables."""
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        if not isinstance(part, list):
            return [f"{path} must be a list"]
        return [said for place, item in enumerate(part) for said in of_kserve(item, inner[1], f"{path}[{place}]")]
    if kind in PLAIN or kind.startswith("dict("):
        expected = PLAIN.get(kind, dict)
        wrong_number = isinstance(part, bool) and kind in ("int", "float")
        return [] if isinstance(part, expected) and not wrong_number else [f"{path} must be {kind}"]
    if kind in WITHIN:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": WITHIN[kind](part)}
        return [f"{path}: {said}" for said in of_kubernetes(pod, VERSIONS[-1])]
    if kind == "V1ObjectMeta":
        config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": part}
        return [f"{path}: {said}" for said in of_kubernetes(config, VERSIONS[-1])]
    if not isinstance(part, dict):
        return [f"{path} must be a {kind}"]
    types, names, must = kserve_models()[kind]
    by_name = {json_name: (types[name], name) for name, json_name in names.items()}
    said = [f"{path}.{name} is unknown" for name in part if name not in by_name]
    said += [f"{path}.{json_name} is missing" for json_name, (_, name) in by_name.items()
             if name in must and json_name not in part]  # fmt: skip
    for name, value in part.items():
        if name in by_name:
            said += of_kserve(value, by_name[name][0], f"{path}.{name}")
    return said


if __name__ == "__main__":
    if sys.argv[1] == "load":
        print(json.dumps([document for document in yaml.safe_load_all(sys.stdin) if document is not None]))
    else:
        print(json.dumps([complaints(document) for document in json.load(sys.stdin)]))
