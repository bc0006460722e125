"""What is installed, and what is promised about it."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()


def test_wheel_holds_all_portions(tmp_path: Path):
    """A wheel holds all three portions, their type markers and templates, and no generic top-level name."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    wanted = (
        "penult/v1/penult_pb2.py", "penult/v1/penult.proto", "penult/oip/grpc_service.proto",
        "penult/oip/grpc_service_pb2.py", "penult/bundle/py.typed", "penult/client/__init__.py", "penult/client/py.typed", "penult/py.typed", "penult/service/process/server.py", "penult/export/jobs/train.py", "penult/export/report/templates/report.html",
        "penult/service/http/static/index.html", "penult/service/http/static/script.js", "penult/service/http/static/draw.js", "penult/service/http/static/try.js", "penult/service/http/static/style.css",
        *(f"penult/label/static/{name}" for name in ("index.html", "style.css", "main.js", "answers.js", "api.js", "draw.js", "grid.js", "one.js", "side.js")),
    )  # fmt: skip
    assert [name for name in wanted if name not in names] == []
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"penult"}


def test_locks_name_no_host():
    """Locked versions carry hashes for every package and no address."""
    for lock in sorted((ROOT / "locks").glob("*.txt")):
        text = lock.read_text()
        assert "://" not in text, lock
        pinned = re.findall(r"^[a-z0-9-]+(?:\[[a-z0-9,]+\])?==", text, re.MULTILINE)
        assert pinned, lock
        blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)
        assert all("--hash=sha256:" in block for block in blocks if "==" in block.split("\n")[0]), lock


def test_installed_versions_are_the_locked_ones():
    """What the tests run on is what the lock says."""
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", (ROOT / "locks" / "cpu.txt").read_text(), re.MULTILINE))
    for name in ("grpcio", "protobuf", "pillow", "simplejpeg", "starlette", "prometheus-client"):
        assert metadata.version(name) == locked[name]


def test_stub_floors_are_dependencies():
    """The base install's floors are those that the checked-in stubs demand at import."""
    base = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    floors = dict(requirement.split(">=") for requirement in base)
    grpc_stub = (ROOT / "proto/penult/v1/penult_pb2_grpc.py").read_text()
    pb_stub = (ROOT / "proto/penult/v1/penult_pb2.py").read_text()
    assert floors["grpcio"] == re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", grpc_stub)[1]
    assert floors["protobuf"] == re.search(r"Protobuf Python Version: ([\d.]+)", pb_stub)[1]


def test_version_is_in_the_changelog():
    """CHANGELOG.md has an open section on top, then the dated one of the version in pyproject.toml."""
    sections = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert sections[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d", sections[1])


def test_no_learnt_files_or_data_are_tracked():
    """Weights, photos and bundles stay out of the repository."""
    assert [n for n in TRACKED if n.endswith((".pth", ".pt", ".onnx", ".pkl", ".npz", ".zip", ".jpg"))] == []


def test_actions_are_pinned_by_commit():
    """Workflows use actions by commit, with the version as a comment."""
    used = [
        line.strip().removeprefix("- ")
        for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))
        for line in path.read_text().splitlines()
        if "uses:" in line
    ]
    assert used
    assert [line for line in used if not re.fullmatch(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []
