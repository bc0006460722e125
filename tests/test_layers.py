"""The order of the rooms: who may import whom, and which room knows which outside library."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PORTIONS = [ROOT / name / "penult" for name in ("proto", "service", "export")]
COMMON = {
    "penult.connection_limits", "penult.console", "penult.extras", "penult.interrupts", "penult.metrics_port",
    "penult.nearest", "penult.offline", "penult.process_limits", "penult.proxies", "penult.drawing", "penult.folders",
    "penult.settings", "penult.text_rendering",
}  # fmt: skip

# Each top-level room may import itself, the common modules and the rooms listed. The common modules import each other only.
MAY_IMPORT: dict[str, set[str]] = {
    **{name: set() for name in COMMON},
    "penult.v1": set(),
    "penult.oip": set(),
    "penult.bundle": set(),
    "penult.lookup": {"penult.bundle"},
    "penult.service": {"penult.v1", "penult.oip", "penult.bundle", "penult.lookup"},
    "penult.client": {"penult.v1"},
    # Of lookup, the vote of the neighbours: whitening is measured by it.
    "penult.export": {"penult.bundle", "penult.lookup"},
    # --tune tries settings of the service.
    "penult.bench": {"penult.v1", "penult.client", "penult.service"},
    # The page learns with the parts of training, and stores through a client.
    "penult.label": {"penult.bundle", "penult.export", "penult.client"},
    "penult.cli": {
        "penult.v1", "penult.bundle", "penult.lookup", "penult.service", "penult.export", "penult.client", "penult.bench",
        "penult.label",
    },
}  # fmt: skip
# Inside these, imports run down this list. Modules beside the rooms (errors, progress) are below all of them.
ORDER = {
    "penult.service": [
        "process", "oip", "http", "grpc", "lifecycle", "inference", "auth", "models", "observability", "runtime",
    ],
    "penult.export": ["jobs", "report", "evaluation", "training", "onnx", "data", "networks", "config"],
    "penult.client": ["tools"],
}  # fmt: skip
# Settings are declared here, above the rooms that act on them; the choices of some are the runtime's.
SETTINGS = "penult.service.config"
KNOW_SETTINGS = {"penult.service.process", "penult.cli", "penult.bench"}
EXCEPTIONS = {
    # The demo runs the command line, as a user does.
    ("penult.export.jobs.demo", "penult.cli"),
    # Versions are compared, and thresholds certified, as the server scores them.
    ("penult.export.jobs.compare", "penult.service"),
    ("penult.export.jobs.calibrate", "penult.service"),
    # A contact sheet shows images as the service crops them.
    ("penult.client.tools.contact_sheet", "penult.bundle"),
}

# Each outside library is known to these rooms only.
KNOWN_TO = {
    "penult.v1": {"penult.service.process", "penult.service.grpc", "penult.client", "penult.bench"},
    "penult.oip": {"penult.service.process", "penult.service.oip"},
    "google.protobuf": set(),
    "grpc": {
        "penult.service.process", "penult.service.http", "penult.service.grpc", "penult.service.auth", "penult.client",
        "penult.bench",
    },
    "grpc_health": {"penult.service.process", "penult.service.http"},
    "grpc_reflection": {"penult.service.process"},
    "onnxruntime": {"penult.service.runtime", "penult.export.onnx"},
    "faiss": {"penult.lookup"},
    "sqlite3": {"penult.lookup"},
    "psycopg": {"penult.lookup"},
    "psycopg_pool": {"penult.lookup"},
    "pgvector": {"penult.lookup"},
    "pymilvus": {"penult.lookup"},
    "pyarrow": {"penult.client.tools", "penult.export.data"},
    "prometheus_client": {"penult.service.observability"},
    "opentelemetry": {"penult.service.observability"},
    "pynvml": {"penult.service.observability"},
    "starlette": {"penult.service.http", "penult.service.oip", "penult.label"},
    "uvicorn": {"penult.service.http", "penult.label", "penult.connection_limits"},
    # The service reads pickles opcode by opcode, without an unpickler.
    "pickle": {"penult.export.evaluation"},
    "pickletools": {"penult.service.models"},
    "sklearn": {"penult.export.evaluation", "penult.export.report", "penult.export.jobs"},
    "scipy": {"penult.export.evaluation", "penult.label"},
    "matplotlib": {"penult.drawing", "penult.export.report", "penult.export.jobs", "penult.bench", "penult.label"},
    "jinja2": {"penult.export.report"},
    "onnx": {"penult.export.onnx"},
    "tqdm": {"penult.console"},
    "tomlkit": {"penult.bench"},
    "cryptography": {"penult.bundle", "penult.service.auth", "penult.client"},
    "tensorboardX": {"penult.export.training"},
    "torch": {
        "penult.export.networks", "penult.export.training", "penult.export.onnx", "penult.export.evaluation",
        "penult.export.jobs",
    },
    "torch.distributed": {"penult.export.training"},
    "torchvision": {"penult.export.networks"},
    "timm": {"penult.export.networks"},
    "transformers": {"penult.export.networks"},
    "huggingface_hub": {"penult.export.networks"},
    "safetensors": {"penult.export.networks"},
    "PIL": {
        "penult.bundle", "penult.client.tools", "penult.bench", "penult.export.data", "penult.export.report",
        "penult.export.jobs", "penult.label", "penult.text_rendering",
    },
}  # fmt: skip


@cache
def modules() -> dict[str, Path]:
    """Return every module of ours that is not generated: dotted name, file."""
    found = {}
    for portion in PORTIONS:
        for path in sorted(portion.rglob("*.py")):
            if "_pb2" not in path.name:
                name = ".".join(path.relative_to(portion.parent).with_suffix("").parts).removesuffix(".__init__")
                found[name] = path
    return found


@cache
def parsed(text: str) -> ast.Module:
    """Return the tree of a source; three tests read the same ones."""
    return ast.parse(text)


def imports(path: Path) -> set[str]:
    """Return what a file imports, inside functions too, as dotted names."""
    found = set()
    for node in ast.walk(parsed(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def is_within(name: str, package: str) -> bool:
    """Return True if a dotted name is the package or below it."""
    return name == package or name.startswith(package + ".")


def top(module: str) -> str:
    """Return the top-level room: penult.service of penult.service.http.server."""
    return ".".join(module.split(".")[:2])


def floor(module: str) -> int:
    """Return how far down a module's room is among its neighbours; modules beside the rooms are at the bottom."""
    order, parts = ORDER.get(top(module), []), module.split(".")
    return order.index(parts[2]) if len(parts) > 2 and parts[2] in order else len(order)


def problems(module: str, path: Path) -> list[str]:
    """Return what is wrong with the imports of one file."""
    found = []
    for name in imports(path):
        if (module, name) in EXCEPTIONS or (module, top(name)) in EXCEPTIONS:
            continue
        if top(name) in MAY_IMPORT and top(name) not in MAY_IMPORT[top(module)] | COMMON | {top(module)}:
            found.append(f"{module} imports {name}, of a room above it")
        if top(module) in COMMON and top(name) in MAY_IMPORT and top(name) not in COMMON:
            found.append(f"{module} is common to all rooms and imports {name}")
        is_below = top(name) == top(module) and module not in {top(module), SETTINGS}
        if is_below and floor(name) < floor(module):
            found.append(f"{module} imports {name}, of a room above it")
        if is_within(name, SETTINGS) and not any(is_within(module, room) for room in KNOW_SETTINGS | {SETTINGS}):
            found.append(f"{module} imports the settings; take the values that it needs")
        found += [
            f"{module} imports {name}; only {', '.join(sorted(knowers))} may"
            for library, knowers in KNOWN_TO.items()
            if is_within(name, library) and not is_within(module, library)
            if not any(is_within(module, room) for room in knowers)
        ]
    return found


def test_imports_run_down_and_each_library_has_its_rooms():
    """No file imports from a room above its own, or a library that belongs to other rooms."""
    assert {top(module) for module in modules()} == set(MAY_IMPORT)
    assert [line for module, path in modules().items() for line in problems(module, path)] == []


def test_a_wrong_import_would_be_found(tmp_path):
    """The test above can fail: by a room, by a floor, by the settings and by a library."""
    path = tmp_path / "wrong.py"
    for line in (
        "from penult.export.jobs import train",
        "from penult.service.process import server",
        "from penult.service.config import ServeConfig",
        "import torch.nn",
    ):
        path.write_text(line)
        assert problems("penult.service.inference.wrong", path), line


def test_penult_stays_a_namespace():
    """No portion has a penult/__init__.py, which would hide the other portions."""
    assert [portion for portion in PORTIONS if (portion / "__init__.py").exists()] == []
    code = "import penult.v1, penult.oip, penult.bundle, penult.service, penult.export, penult.client"
    assert subprocess.run([sys.executable, "-c", code], cwd="/", timeout=300, check=False).returncode == 0


def test_telemetry_is_off_before_onnxruntime_is_imported():
    """Each package that knows onnxruntime imports penult.offline before anything else of its own."""
    for package in {top(room) for room in KNOWN_TO["onnxruntime"]}:
        statements = parsed(modules()[package].read_text()).body
        first = next(each for each in statements if isinstance(each, ast.Import) and each.names[0].name != "os")
        assert first.names[0].name == "penult.offline", package


def test_serving_never_imports_torch():
    """The service's imports leave torch, onnx and scikit-learn alone."""
    code = (
        "import sys, penult.service.process.server, penult.cli\n"
        "print([m for m in ('torch', 'torchvision', 'onnx', 'sklearn', 'scipy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert result.stdout.strip() == "[]"


def test_functions_and_files_stay_small():
    """Functions have at most 60 lines, files at most 400."""
    for module, path in modules().items():
        text = path.read_text()
        assert text.count("\n") <= 400, module
        for node in ast.walk(parsed(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < 60, f"{module}.{node.name}"
