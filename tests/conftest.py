"""Shared by all tests: real photos, a real bundle made by the real exporter, a real server in a process of its own."""

import gc
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import penult.export  # noqa: F401 - sets how OpenMP waits, before a test imports torch

ROOT = Path(__file__).parent.parent
pytest_plugins = ["tests.tiers", "tests.fixtures.serving", "tests.fixtures.trained", "tests.fixtures.gates"]
SHARED = ROOT.parent / "shared"
# Collecting loads PyTorch: 800,000 objects that stay. Searching them for garbage took a tenth of the unit tests' time.
gc.disable()
READY_TIMEOUT_S = 60
# Started in the background of a script, this process ignores Ctrl-C, and so would all those that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Running:
    """A `penult serve` process that said `ready`."""

    target: str
    http: str
    process: "subprocess.Popen[str]"
    log: Path


def pytest_collection_finish() -> None:
    """Search for garbage from here on, except among what collecting has loaded."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Let the interpreter end as usual: libraries complain of what they find alive at the very end."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests' own, for what penult remembers of photos; matplotlib keeps its list of fonts."""
    with pytest.MonkeyPatch.context() as patch:
        if "MPLCONFIGDIR" not in os.environ:
            patch.setenv("MPLCONFIGDIR", str(Path("~/.cache/matplotlib").expanduser()))
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def one_thread_of_linear_algebra() -> Iterator[None]:
    """NumPy's and SciPy's threads spin while they wait for each other, and two processes of tests use both cores."""
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run some Python in a process of its own: run_python("-c", code) or run_python("-m", "penult.cli", …)."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], env=os.environ | (env or {}), timeout=300,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits as train/ and test/ folders, half and half."""
    from penult.export.jobs.demo import write_digits

    return write_digits(tmp_path_factory.mktemp("photos") / "digits", "0123456789")


@pytest.fixture(scope="session")
def few_digits(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits 0 to 3: 24 photos each to learn from, 10 to test."""
    folder = tmp_path_factory.mktemp("photos") / "few"
    for part, count in (("train", 24), ("test", 10)):
        for digit in "0123":
            (folder / part / digit).mkdir(parents=True)
            for source in sorted((digits / part / digit).iterdir())[:count]:
                (folder / part / digit / source.name).write_bytes(source.read_bytes())
    return folder


@pytest.fixture(scope="session")
def some_digits(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All ten digits: 30 photos each to learn from, 12 to test."""
    folder = tmp_path_factory.mktemp("photos") / "some"
    for part, count in (("train", 30), ("test", 12)):
        for digit in "0123456789":
            (folder / part / digit).mkdir(parents=True)
            for source in sorted((digits / part / digit).iterdir())[:count]:
                (folder / part / digit / source.name).write_bytes(source.read_bytes())
    return folder


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state-dict file for tiny5 whose every value, statistics too, differs from a fresh network's."""
    import torch

    from penult.export.networks.architectures import get

    generator = torch.Generator().manual_seed(7)
    # The same bits whatever ran before: tests compare runs to 1e-5, and a last bit can grow to more than that.
    torch.manual_seed(7)
    body = get("tiny5").body().train()
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.add_((torch.rand(parameter.shape, generator=generator) - 0.5) * 0.02)
        for _ in range(50):
            body(torch.randn(16, 3, 32, 32, generator=generator))
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.save(body.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def zeros(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digit 0 as train/0 (60 photos) and test/0 (20), with the digits 1 to 3 in test/ (10 each)."""
    folder = tmp_path_factory.mktemp("photos") / "zeros"
    for part, digit, count in (("train", "0", 60), ("test", "0", 20), *(("test", other, 10) for other in "123")):
        (folder / part / digit).mkdir(parents=True)
        for source in sorted((digits / part / digit).iterdir())[:count]:
            (folder / part / digit / source.name).write_bytes(source.read_bytes())
    return folder


@pytest.fixture(scope="session")
def one_class(zeros: Path, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with `zero`, a model of one class: version 1 by nearest photos, version 2 by a one-class SVM."""
    from tests.fixtures.trained import cached

    def make(folder: Path) -> None:
        from penult.export.config.refit import RefitSettings
        from penult.export.config.train import TrainSettings
        from penult.export.jobs.refit import refit
        from penult.export.jobs.train import train

        out = folder / "zero"
        train(TrainSettings(zeros, out, arch="tiny5", weights=str(tiny_weights), device="cpu", false_alarms=0.1,
                            outliers=zeros / "test"))  # fmt: skip
        refit(RefitSettings(out, data=zeros, novelty="svm", outliers=zeros / "test"))

    return shutil.copytree(cached("one-class", make), tmp_path_factory.mktemp("one-class") / "copy")


@pytest.fixture(scope="session")
def models(trained) -> Path:
    """A model repository that holds `digits`, version 1."""
    return trained.folder.parent.parent


@pytest.fixture(scope="session")
def copy_model(models: Path) -> Callable[[Path], Path]:
    """Copy the trained model, digits with version 1, below a folder: copy_model(folder) returns folder/digits."""

    def copy(folder: Path) -> Path:
        return shutil.copytree(models / "digits", folder / "digits", ignore=shutil.ignore_patterns(".*"))

    return copy


# What is being set up, the innermost last, behind the test itself. pytest does not tell of fixtures of the session, which
# come before all others: then it is empty.
_ASKING: list[pytest.FixtureRequest] = []


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Iterator[None]:
    """Note which fixture is being set up, for what it starts to end with it."""
    _ASKING.append(request)
    try:
        return (yield)
    finally:
        _ASKING.remove(request)


@pytest.fixture(autouse=True)
def _asking(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test starts ends with the test."""
    _ASKING.insert(0, request)
    yield
    _ASKING.remove(request)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="session")
def start_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Running]:
    """Start servers on free ports: start_server(models, *options, env={}); they end with the test or fixture that asks.

    Dozens of idle servers would take a core from the tests that come later.
    """

    def start(models: Path, *options: str, env: dict[str, str] | None = None) -> Running:
        log = tmp_path_factory.mktemp("server") / "log.txt"
        command = [
            *(sys.executable, "-m", "penult.cli", "serve", "--models", str(models), "--port", "0"),
            *("--metrics-port", "0", "--drain-lead", "0", *options),
        ]
        with log.open("w") as sink:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=sink, text=True, env=os.environ | (env or {})
            )
        (_ASKING[-1] if _ASKING else request).addfinalizer(partial(_end, process))
        for line in process.stdout:
            if line.startswith("ready "):
                words = dict(word.split("=", 1) for word in line.split()[1:])
                return Running(words["grpc"], words["metrics"].removesuffix("/metrics"), process, log)
        raise AssertionError(f"the server did not become ready:\n{log.read_text()}")

    return start


@pytest.fixture(scope="session")
def server(models: Path, start_server: Callable[..., Running]) -> Running:
    """A server of `digits` that all tests share: ask it anything, but leave it running."""
    return start_server(models, "--http")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real weights and photo sets, beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs ../shared/data (real weights and photos), which is not here")
    return SHARED / "data"


@pytest.fixture(scope="session")
def photos_of(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """photos_of(name): the folder of a set of real photos."""

    def extract(name: str) -> Path:
        folder = tmp_path_factory.mktemp("photos")
        with zipfile.ZipFile(shared_data / f"{name}.zip") as archive:
            archive.extractall(folder)
        return folder / name

    return extract


@pytest.fixture(scope="session")
def trashnet(photos_of: Callable[[str], Path]) -> Path:
    """The TrashNet photos, with the authors' split."""
    return photos_of("trashnet")


@pytest.fixture(scope="session")
def environment() -> Callable[..., Path]:
    """The Python of an environment of its own, for what cannot or should not share ours: environment(NAME_OF_LOCK)."""

    def make(name: str, below: Path = ROOT / ".tools") -> Path:
        lock = ROOT / "locks" / f"{name}.txt"
        folder = below / f"{name}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
        python, uv = folder / "bin" / "python", ROOT / ".tools" / "bin" / "uv"
        if not (folder / ".ready").exists():
            new = [uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder]
            subprocess.run(new, check=True, timeout=300)
            sync = [uv, "pip", "sync", "--quiet", "--python", python, "--require-hashes", lock]
            subprocess.run(sync, check=True, timeout=300)
            (folder / ".ready").touch()
        return python

    return make


@pytest.fixture(scope="session")
def packages() -> Callable[..., Path]:
    """A folder of packages to be put on the path beside our environment: packages(NAME_OF_LOCK)."""

    def make(name: str) -> Path:
        lock, uv = ROOT / "locks" / f"{name}.txt", ROOT / ".tools" / "bin" / "uv"
        folder = ROOT / ".tools" / f"{name}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
        if not (folder / ".ready").exists():
            install = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", folder, "--no-deps"]
            # Compiling would take half a minute; what is used once is compiled as it is imported.
            environment = os.environ | {"UV_COMPILE_BYTECODE": "0"}
            subprocess.run([*install, "--require-hashes", "-r", lock], check=True, timeout=300, env=environment)
            (folder / ".ready").touch()
        return folder

    return make


@pytest.fixture(scope="session")
def triton_python(environment: Callable[..., Path]) -> Path:
    """The Python of an environment with the unmodified tritonclient, which pins an older protobuf than ours."""
    return environment("tritonclient")


@pytest.fixture(scope="session")
def postgresql(environment: Callable[..., Path]) -> Iterator[str]:
    """The URL of a real PostgreSQL with pgvector, on a Unix socket; it ends with the session.

    It runs as a user of its own, who may not look into the checkout.
    """
    python = environment("postgresql", Path(tempfile.gettempdir()) / "penult-tools")
    script = ROOT / "tests" / "lookup" / "postgresql_server.py"
    with subprocess.Popen([python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.stdin.close()
        process.wait(60)


@pytest.fixture(scope="session")
def milvus(environment: Callable[..., Path]) -> Iterator[str]:
    """The port of a real Milvus on 127.0.0.1; it ends with the session."""
    python = environment("milvus")
    script = ROOT / "tests" / "lookup" / "milvus_server.py"
    with subprocess.Popen([python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.stdin.close()
        process.wait(60)


@pytest.fixture(scope="session")
def make_database(postgresql: str) -> Callable[[], str]:
    """Make new, empty databases: make_database() returns a URL."""
    import psycopg

    def make() -> str:
        name = f"t{uuid.uuid4().hex}"
        with psycopg.connect(postgresql, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return postgresql.replace("/postgres?", f"/{name}?")

    return make


@pytest.fixture(scope="session")
def ask_with_triton(triton_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict]:
    """Ask a server with tritonclient: ask_with_triton(target, http, model, photos, crops) returns what it found."""

    def ask(target: str, http: str, model: str, photos: list[bytes], crops: "np.ndarray") -> dict:
        folder = tmp_path_factory.mktemp("triton")
        for place, photo in enumerate(photos):
            (folder / f"{place:05d}.photo").write_bytes(photo)
        np.save(folder / "crops.npy", crops)
        script = ROOT / "tests" / "fixtures" / "triton_client.py"
        done = subprocess.run(
            [triton_python, "-P", script, target, http.removeprefix("http://"), model, folder],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return ask
