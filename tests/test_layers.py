"""The house rules that a reader could not see broken: who imports whom, and which library each module knows."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PORTIONS = [ROOT / name / "penult" for name in ("proto", "service", "export")]

# Imports run downward: each room may import itself and the rooms listed.
MAY_IMPORT = {
    "penult.v1": set(),
    "penult.oip": set(),
    "penult.bundle": {"penult.nearest"},
    "penult.lookup": {"penult.bundle", "penult.nearest", "penult.extras", "penult.proxies"},
    "penult.service": {
        "penult.v1",
        "penult.oip",
        "penult.bundle",
        "penult.lookup",
        "penult.heap",
        "penult.offline",
        "penult.nearest",
        "penult.extras",
        "penult.metrics_port",
        "penult.proxies",
    },
    # Of lookup, what a neighbour's vote is: whitening is measured by it.
    "penult.export": {
        "penult.bundle",
        "penult.drawing",
        "penult.folders",
        "penult.interrupts",
        "penult.lookup",
        "penult.nearest",
        "penult.offline",
    },
    "penult.client": {
        "penult.v1",
        "penult.folders",
        "penult.interrupts",
        "penult.metrics_port",
        "penult.nearest",
        "penult.proxies",
    },
    "penult.drawing": set(),
    "penult.heap": set(),
    "penult.interrupts": set(),
    "penult.nearest": set(),
    "penult.offline": set(),
    "penult.extras": set(),
    "penult.proxies": set(),
    "penult.metrics_port": set(),
    # One walk over photos for learning and for clients: below both, and of the standard library, as clients have no more.
    "penult.folders": set(),
    # A client with a stopwatch; of the service it knows the settings, which --tune tries.
    "penult.bench": {
        "penult.v1",
        "penult.client",
        "penult.service",
        "penult.drawing",
        "penult.nearest",
        "penult.extras",
        "penult.proxies",
        "penult.folders",
    },
    "penult.cli": {
        "penult.v1",
        "penult.bundle",
        "penult.lookup",
        "penult.folders",
        "penult.heap",
        "penult.interrupts",
        "penult.nearest",
        "penult.extras",
        "penult.service",
        "penult.export",
        "penult.client",
        "penult.bench",
    },
}
# The demo is a user of the whole: it runs the command line, as a person would. A contact sheet shows photos as the
# service sees them.
EXCEPTIONS = {
    ("penult.export.demo", "penult.cli"),
    ("penult.client.sheet", "penult.bundle"),
    ("penult.client.sheet", "penult.bundle.errors"),
    ("penult.client.sheet", "penult.bundle.preprocess"),
}

# Each outside library is known to these modules only.
KNOWN_TO = {
    "penult.v1": {"penult.service.servicer", "penult.service.lookup_servicer", "penult.service.messages",
        "penult.service.server", "penult.client.aio", "penult.client.plain",
        "penult.client.messages", "penult.client.lookup", "penult.client.plain_lookup", "penult.client.aio_lookup",
        "penult.bench.requests",
    },
    "penult.oip": {"penult.service.oip", "penult.service.server"},
    "google.protobuf": set(),
    "grpc": {
        "penult.client.opening", "penult.service.certificates", "penult.service.doors",
        "penult.service.errors", "penult.service.interceptor", "penult.service.streams", "penult.service.server",
        "penult.service.ports",
        "penult.client.aio", "penult.client.channel", "penult.client.health", "penult.client.messages", "penult.client.plain",
        "penult.client.aio_lookup", "penult.client.plain_lookup", "penult.bench.load",
    },
    "onnxruntime": {
        "penult.service.session", "penult.service.device_session", "penult.export.runtime", "penult.export.quantize",
    },
    "faiss": {"penult.lookup.embedded.pieces"},
    "sqlite3": {"penult.lookup.embedded.record"},
    "pyarrow": {"penult.client.tables"},
    "psycopg": {"penult.lookup.pgvector"},
    "psycopg_pool": {"penult.lookup.pgvector"},
    "pgvector": {"penult.lookup.pgvector"},
    "pymilvus": {"penult.lookup.milvus"},
    "prometheus_client": {"penult.service.metrics", "penult.service.fronts_metrics", "penult.service.gpu_metrics"},
    "opentelemetry": {"penult.service.tracing"},
    "pynvml": {"penult.service.gpu_metrics"},
    "starlette": {
        "penult.service.http", "penult.service.http_parts", "penult.service.oip_http", "penult.service.status_page",
        "penult.service.trying", "penult.service.reports",
    },
    "uvicorn": {"penult.service.http", "penult.service.http_protocol"},
    "grpc_health": {"penult.service.ports", "penult.service.server"},
    "grpc_reflection": {"penult.service.server"},
    # The service reads pickles opcode by opcode, and knows no unpickler.
    "pickle": {"penult.export.svm"},
    "pickletools": {"penult.service.unpickle"},
    "sklearn": {
        "penult.export.svm", "penult.export.svm_cost", "penult.export.evaluate", "penult.export.descriptor_map",
        "penult.export.demo", "penult.export.whiten", "penult.export.baseline",
    },
    "scipy": {"penult.export.evaluate"},
    "matplotlib": {
        "penult.drawing", "penult.export.pictures", "penult.export.pictures_learning", "penult.export.pictures_network",
        "penult.export.pictures_photos", "penult.export.pictures_scorers", "penult.bench.picture",
    },
    "jinja2": {"penult.export.report"},
    "onnx": {"penult.export.convert", "penult.export.head", "penult.export.half", "penult.export.quantize"},
    "tqdm": {"penult.export.progress", "penult.client.many"},
    "cryptography": {"penult.bundle.signature", "penult.service.certificates", "penult.client.health"},
    "tensorboardX": {"penult.export.board"},
    "torch.distributed": {"penult.export.workers"},
    "torchvision": {"penult.export.architectures", "penult.export.model"},
    "PIL": {
        "penult.bundle.preprocess", "penult.export.augment", "penult.export.gallery", "penult.export.photos",
        "penult.export.demo", "penult.bench.photos", "penult.client.sheet", "penult.client.lettering",
    },
}  # fmt: skip
FORBIDDEN_IN = {
    "penult.bench": {"torch", "torchvision", "onnxruntime"},
    "penult.service": {"torch", "torchvision"},
    "penult.bundle": {"torch", "torchvision", "grpc"},
    "penult.lookup": {"torch", "torchvision", "grpc"},
}


def modules() -> Iterator[tuple[str, Path]]:
    for portion in PORTIONS:
        for path in sorted(portion.rglob("*.py")):
            parts = path.relative_to(portion.parent).with_suffix("").parts
            if "_pb2" not in path.name:
                yield ".".join(parts).removesuffix(".__init__"), path


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_all_rooms_are_seen():
    """The walk below really meets every room."""
    assert {room(module) for module, _ in modules()} == set(MAY_IMPORT)


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_run_downward(module: str, path: Path):
    """No room imports a room above it, and no library is known outside its modules."""
    for name in imports(path):
        if room(name) in MAY_IMPORT and room(name) != room(module) and (module, name) not in EXCEPTIONS:
            assert room(name) in MAY_IMPORT[room(module)], f"{module} imports {name}"
        for library, knowers in KNOWN_TO.items():
            if (name == library or name.startswith(library + ".")) and room(module) != library:
                assert module in knowers, f"{module} imports {name}; only {', '.join(sorted(knowers))} may"
        assert name.split(".")[0] not in FORBIDDEN_IN.get(room(module), set()), f"{module} imports {name}"


def test_penult_stays_a_namespace():
    """No portion has a penult/__init__.py: one would make the others vanish."""
    assert [portion for portion in PORTIONS if (portion / "__init__.py").exists()] == []
    assert subprocess.run(
        [sys.executable, "-c", "import penult.v1, penult.oip, penult.bundle, penult.service, penult.export, penult.client"],
        cwd="/", timeout=60, check=False,
    ).returncode == 0  # fmt: skip


def test_telemetry_is_off_before_onnxruntime_is_imported():
    """Each package that knows onnxruntime imports the switch first of all: Python runs that before any of its modules."""
    for package in {room(module) for module in KNOWN_TO["onnxruntime"]}:
        path = next(path for module, path in modules() if module == package)
        first = next(
            node
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Import) and node.names[0].name != "os"
        )
        assert first.names[0].name == "penult.offline", package


def test_serving_never_imports_torch():
    """Everything that the service imports leaves torch, onnx and scikit-learn alone."""
    code = (
        "import sys, penult.service.server, penult.cli\n"
        "print([m for m in ('torch', 'torchvision', 'onnx', 'sklearn', 'scipy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"


def test_functions_and_files_stay_small():
    """Functions stay below 61 lines and files below 400, the command line and the client included."""
    for module, path in modules():
        text = path.read_text()
        assert text.count("\n") < 400, module
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < 60, f"{module}.{node.name}"
