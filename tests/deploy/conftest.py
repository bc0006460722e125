"""Manifests as those who apply them see them, and their commands as real servers."""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penult.service.config import ServeConfig

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPONENTS = sorted(path.name for path in (DEPLOY / "kubernetes" / "components").iterdir())
# Each overlay, each component on top of one (autoscaling is in both), and all of them.
OTHERS = [name for name in COMPONENTS if name != "autoscaling"]
BUILDS = [("cpu",), ("gpu",), *(("cpu", name) for name in OTHERS), ("gpu", *OTHERS)]


# -- reading -----------------------------------------------------------------------------------------------------------


class Manifests(list[dict]):
    """What is applied together."""

    def all(self, kind: str) -> list[dict]:
        """The documents of a kind; there is one at least."""
        found = [document for document in self if document["kind"] == kind]
        assert found, kind
        return found

    def one(self, kind: str) -> dict:
        """The only document of a kind."""
        (found,) = self.all(kind)
        return found

    @property
    def pod(self) -> dict:
        """The pod template of the only Deployment."""
        return self.one("Deployment")["spec"]["template"]

    @property
    def container(self) -> dict:
        """penult's container in it."""
        (container,) = self.pod["spec"]["containers"]
        return container

    @property
    def runtimes(self) -> list[dict]:
        """The containers of KServe's runtimes."""
        return [container for runtime in self.all("ServingRuntime") for container in runtime["spec"]["containers"]]


def variables_of(container: dict) -> dict[str, str]:
    """The container's environment as the kubelet makes it; secrets get a value that parses."""
    found = {}
    for variable in container["env"]:
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


@dataclass(frozen=True)
class Tools:
    """What reads and checks manifests: schemas.py's verbs, and kubectl."""

    python: Path
    models: Path

    def _ask(self, verb: str, given: str) -> list:
        done = subprocess.run(
            [self.python, Path(__file__).parent / "schemas.py", verb], input=given, capture_output=True, text=True,
            timeout=300, check=False, env=os.environ | {"PYTHONPATH": str(self.models)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def load(self, text: str) -> list[dict]:
        """The documents of some YAML."""
        return self._ask("load", text)

    def complaints(self, documents: list[dict]) -> list[str]:
        """What the schemas have to say of documents."""
        return [said for each in self._ask("check", json.dumps(documents)) for said in each]

    def build(self, folder: Path) -> Manifests:
        """What `kubectl apply -k FOLDER` would send."""
        command = [self.python.parent / "kubectl", "kustomize", folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return Manifests(self.load(done.stdout))


@pytest.fixture(scope="session")
def tools(environment) -> Tools:
    """kubectl and schemas, in environments of their own."""
    models = environment("deploy-models")
    return Tools(environment("deploy"), next((models.parent.parent / "lib").glob("python*/site-packages")))


@pytest.fixture(scope="session")
def build_with(tools, tmp_path_factory) -> Callable[..., Manifests]:
    """Build an overlay with components on top: build_with("cpu", "lookup", "tls")."""

    def build(overlay: str, *components: str) -> Manifests:
        folder = tmp_path_factory.mktemp("overlay").resolve()
        kubernetes = Path(os.path.relpath(DEPLOY / "kubernetes", folder))
        lines = [
            "namespace: penult",
            f"resources: [{kubernetes}/overlays/{overlay}]",
            f"components: [{', '.join(str(kubernetes / 'components' / name) for name in components)}]",
        ]
        (folder / "kustomization.yaml").write_text("\n".join(lines))
        return tools.build(folder)

    return build


@pytest.fixture(scope="session", params=BUILDS, ids="+".join)
def documents(request, build_with) -> Manifests:
    """Everything that an overlay with some components applies."""
    return build_with(*request.param)


@pytest.fixture(scope="session")
def all_documents(build_with) -> list[dict]:
    """The same of all of them, each document once."""
    built = {json.dumps(document) for names in BUILDS for document in build_with(*names)}
    return [json.loads(document) for document in sorted(built)]


@pytest.fixture(scope="session")
def kserve(tools) -> Manifests:
    """The runtimes and both InferenceServices."""
    grpc_service = tools.load((DEPLOY / "kserve" / "inferenceservice-grpc.yaml").read_text())
    return Manifests([*tools.build(DEPLOY / "kserve"), *grpc_service])


@pytest.fixture(scope="session")
def dockerfile() -> dict[str, list[str]]:
    """The Dockerfile's instructions from its runtime stage on: {"ENV": ["PATH=… …", …], "USER": ["65532:65532"]}."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    runtime = text[text.index(" AS runtime") :]
    found: dict[str, list[str]] = {}
    for word, rest in re.findall(r"^([A-Z]+) +(.*)$", runtime, re.MULTILINE):
        found.setdefault(word, []).append(rest)
    return found


@pytest.fixture(scope="session")
def image_environment(dockerfile) -> dict[str, str]:
    """The variables that every image sets for penult (the gpu image PENULT_DEVICE beside them)."""
    pairs = [pair.partition("=")[::2] for line in dockerfile["ENV"] for pair in line.split()]
    return {name: value for name, value in pairs if name.startswith("PENULT_") and name != "PENULT_DEVICE"}


def settings_of(arguments: list[str], environment: dict[str, str]) -> ServeConfig:
    """The settings that `penult serve` would have, by the real parser; arguments begin with "serve"."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    ServeConfig.add_arguments(parser)
    assert arguments[0] == "serve"
    return ServeConfig.load(parser.parse_args(arguments[1:]), environment)


@pytest.fixture(scope="session")
def read_settings() -> Callable[[list[str], dict[str, str]], ServeConfig]:
    """settings_of."""
    return settings_of


@pytest.fixture(scope="session")
def variables() -> Callable[[dict], dict[str, str]]:
    """variables_of."""
    return variables_of


@pytest.fixture(scope="session")
def settings(image_environment) -> Callable[[dict], ServeConfig]:
    """The settings that a container's penult has."""

    def read(container: dict) -> ServeConfig:
        return settings_of(container["args"], image_environment | variables_of(container))

    return read


# -- running -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """A command of a manifest, running; ports are those that manifests name, mapped to free ones."""

    ports: dict[int, int]
    process: "subprocess.Popen[str]"
    log: Path

    def ask_grpc(self, port: int, service: str) -> bool:
        """As the kubelet's gRPC probe."""
        with grpc.insecure_channel(f"127.0.0.1:{self.ports[port]}") as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=20)
            except grpc.RpcError:
                return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def ask_http(self, port: int, path: str) -> bool:
        """As its HTTP probe: 200 to 399."""
        return 200 <= httpx.get(f"http://127.0.0.1:{self.ports[port]}{path}", timeout=20).status_code < 400


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., Started]]:
    """Start a container's command on this machine: start(arguments, environment, {"/models": FOLDER}).

    Paths are mapped, and ports and address, since many tests share this machine; everything else is as it stands.
    `before` is put in front of the command; `python` may be another than ours.
    """
    processes: list[subprocess.Popen[str]] = []

    def run(
        arguments: list[str],
        environment: dict[str, str],
        folders: dict[str, Path],
        before: tuple[object, ...] = (),
        python: object = sys.executable,
    ) -> Started:
        def mapped(text: str) -> str:
            for path, folder in folders.items():
                text = re.sub(rf"(?<![\w/]){path}(?![\w])", str(folder), text)
            return text

        log = tmp_path / f"log-{len(processes)}.txt"
        command = [
            *map(str, before), str(python), "-m", "penult.cli", *map(mapped, arguments),
            "--host=127.0.0.1", "--port=0", "--metrics-port=0",
        ]  # fmt: skip
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PENULT_")}
        env = clean | {name: mapped(value) for name, value in environment.items()}
        with log.open("w") as sink:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sink, text=True, env=env, cwd=tmp_path)
        processes.append(process)
        for line in process.stdout:
            if line.startswith("ready "):
                found = [int(number) for number in re.findall(r"(?:grpc|metrics)=(?:http://)?127\.0\.0\.1:(\d+)", line)]
                return Started(dict(zip((50051, 9095), found, strict=True)), process, log)
        raise AssertionError(f"not ready:\n{log.read_text()}")

    yield run
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()
