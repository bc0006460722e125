"""penult talks to nobody that it was not told to: every command runs in a network namespace of its own, under strace.

`CI` and all other variables of this session are left out, since some of them keep dependencies silent; HOME is new and empty. The
namespace has nothing but loopback, so nothing leaves this machine whatever a dependency attempts.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

NEEDED = ("unshare", "nsenter", "ip", "strace")
PENULT = (sys.executable, "-m", "penult.cli")
PORT = re.compile(r"sin6?_port=htons\((\d+)\)")
ADDRESS = re.compile(r'inet_(?:addr\(|pton\(AF_INET6, )"([^"]+)"')
LOOPBACK = re.compile(r"127\.|::1$|::ffff:127\.")
NAME_LOOKUP = 53
# Of traces: told to the server, and nobody listens there.
COLLECTOR = 4317
READY_TIMEOUT_S, ATTEMPT_TIMEOUT_S = 60, 120


@dataclass
class Walk:
    """Runs commands in the namespace, and knows what each of them tried to reach."""

    namespace: Path
    folder: Path
    traces: dict[str, Path] = field(default_factory=dict)
    told: set[int] = field(default_factory=set)

    @property
    def home(self) -> Path:
        """The folder that the commands take for the user's."""
        return self.folder / "home"

    def start(self, name: str, *command: object) -> "subprocess.Popen[str]":
        """Start a command; what it prints and reports goes through the pipes of the process."""
        self.traces[name] = self.folder / f"{name}.strace"
        self.home.mkdir(exist_ok=True)
        trace = [
            "strace",
            "-f",
            "--seccomp-bpf",
            "-e",
            "trace=connect,sendto,sendmsg,sendmmsg",
            "-o",
            self.traces[name],
        ]
        # What matplotlib knows of fonts is kept from before: to find them all takes seconds.
        kept = {name: os.environ[name] for name in ("PATH", "MPLCONFIGDIR")}
        return subprocess.Popen(
            list(map(str, ["nsenter", f"--net={self.namespace}", *trace, *command])), cwd=self.folder, text=True,
            env=kept | {"HOME": str(self.home)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, name: str, *command: object) -> None:
        """Run a command to its end, which must be 0."""
        process = self.start(name, *command)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors

    def reached(self, name: str) -> set[tuple[str, int]]:
        """The addresses and ports that a command connected or sent to, or tried to."""
        lines = self.traces[name].read_text().splitlines()
        return {(ADDRESS.search(line)[1], int(PORT.search(line)[1])) for line in lines if PORT.search(line)}


def outside(reached: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """What is not on this machine, and every lookup of a name."""
    return {(address, port) for address, port in reached if port == NAME_LOOKUP or not LOOPBACK.match(address)}


@pytest.fixture(scope="module")
def make_walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Walk]]:
    """Make walks, each with a home of its own, all in one network namespace with nothing but loopback."""
    if missing := [tool for tool in NEEDED if not shutil.which(tool)]:
        pytest.skip(f"needs {', '.join(missing)}")
    hold = ["unshare", "--net", "sh", "-euc", "ip link set lo up; echo up; exec cat"]
    with subprocess.Popen(
        hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        if process.stdout.readline() != "up\n":
            pytest.skip(f"needs a network namespace, as root has: {process.stderr.read().strip()}")
        namespace = Path(f"/proc/{process.pid}/ns/net")
        yield lambda: Walk(namespace, tmp_path_factory.mktemp("offline"))
        process.stdin.close()


# Four in one process: each would import torch anew, for seconds. The demo is what it runs, the functions of these; of the
# other stores it is their libraries that could speak up by themselves.
LEARN = """
import sys
from penult.cli import main
import penult.export.jobs.demo, penult.lookup.milvus, penult.lookup.pgvector
data, out = sys.argv[1:]
train = ["train", data, "--out", out, "--arch", "tiny5", "--weights", "none", "--epochs", "1"]
sys.exit(main([*train, "--dry-run"]) or main(train) or main(["svm", out, data]) or main(["quantize", out, data]))
"""


@pytest.fixture(scope="module")
def walk(make_walk: Callable[[], Walk], few_digits: Path) -> Walk:
    """Every command of penult, run once; the server for as long as it is asked."""
    walk = make_walk()
    model = walk.folder / "models" / "few"
    walk.run("learn", sys.executable, "-c", LEARN, few_digits, model)
    walk.run("check", *PENULT, "check", model)
    walk.run("sign", *PENULT, "sign", model, "--new-key", walk.folder / "key")
    walk.run("token", *PENULT, "token", "alice")
    flags = (
        "--port",
        "0",
        "--metrics-port",
        "0",
        "--drain-lead",
        "0",
        "--http",
        "--trace",
        f"http://127.0.0.1:{COLLECTOR}",
    )
    server = walk.start("serve", *PENULT, "serve", *flags)
    ready = next(line for line in server.stdout if line.startswith("ready "))
    words = dict(word.split("=", 1) for word in ready.split()[1:])
    port = words["grpc"].rsplit(":", 1)[1]
    photos = sorted((few_digits / "test").glob("*/*.png"))[:2]
    # By address and by name: a name of this machine needs no lookup either.
    for target in (f"127.0.0.1:{port}", f"localhost:{port}"):
        ask = ("--target", target)
        name = target.partition(":")[0]
        walk.run(f"classify-{name}", *PENULT, "classify", *photos, *ask)
    walk.run("describe", *PENULT, "describe", *photos, *ask)
    walk.run("index", *PENULT, "index", "add", "known", few_digits / "train", "--model", "few", *ask)
    walk.run("lookup", *PENULT, "lookup", *photos, "--collection", "known", *ask)
    load = ("--duration", "0.2", "--warmup", "0.1", "--metrics", words["metrics"])
    walk.run("bench", *PENULT, "bench", "--photos", few_digits / "test", *load, *ask)
    walk.run("health", sys.executable, "-m", "penult.client.health", *ask)
    end(server)
    walk.told = {int(port), int(re.search(r":(\d+)/", words["metrics"])[1])}
    return walk


def end(tracer: "subprocess.Popen[str]") -> None:
    """Ask what strace started to end, and wait until it has."""
    started = Path(f"/proc/{tracer.pid}/task/{tracer.pid}/children").read_text().split()[0]
    os.kill(int(started), signal.SIGTERM)
    _, errors = tracer.communicate(timeout=READY_TIMEOUT_S)
    assert tracer.returncode == 0, errors


def test_no_command_reaches_what_it_was_not_told_of(walk: Walk):
    """No name is looked up, nothing but the server's two ports is connected to, and those by clients alone."""
    reached = {name: walk.reached(name) for name in walk.traces}
    assert {name: found for name, found in reached.items() if outside(found)} == {}
    # Port 0: how getaddrinfo() asks the kernel for its own address towards another; nothing is sent.
    assert {port for found in reached.values() for _, port in found} <= walk.told | {0, COLLECTOR}
    assert all(reached[name] for name in ("classify-127.0.0.1", "classify-localhost", "describe", "lookup", "bench"))
    assert not any(reached[name] for name in ("learn", "check", "sign", "token"))
    assert {port for _, port in reached["serve"]} <= {COLLECTOR}


def test_nothing_is_left_at_home_but_our_own_cache(walk: Walk):
    """Of all commands only penult's own cache remains below HOME: no id of the machine, no queue of reports."""
    assert {path.relative_to(walk.home).as_posix() for path in walk.home.glob(".*/*")} <= {".cache/penult"}


# The switch undone after penult has set it; then what `penult check` does.
UNDONE = """
import os, sys
import penult.service
del os.environ["ORT_DISABLE_TELEMETRY"]
from penult.cli import main
main(["check", sys.argv[1]])
sys.stdin.read()
"""


def test_without_the_switch_it_would_be_seen(make_walk: Callable[[], Walk], models: Path):
    """The same command with the switch undone leaves an id of the machine at home and looks up where to report to."""
    walk = make_walk()
    process = walk.start("undone", sys.executable, "-c", UNDONE, models / "digits")
    until = time.monotonic() + ATTEMPT_TIMEOUT_S
    while not outside(walk.reached("undone") if walk.traces["undone"].exists() else set()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until, "it reports to nobody any more: is the switch still needed?"
        time.sleep(0.2)
    process.communicate(timeout=READY_TIMEOUT_S)
    assert list(walk.home.glob(".cache/Microsoft/**/deviceid"))
