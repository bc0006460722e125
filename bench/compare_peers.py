"""penult beside mosec and KServe, on the same graph and in one interleaved run: `make bench-peers`.

The peers run from an environment of their own, `.tools/peers`. They decode as fast as a user could write it
(bench/peers/graph.py). All servers of a model stay up and take turns in random order. CPU-ms is of a server's
processes, for each image. `÷ ceiling` compares with the same graph in one process, in the same round.
"""

import argparse
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import payloads
from ceiling import Ceiling
from front import spread, table_head, table_row
from generators import GrpcLoad, HttpLoad, Load
from prepare import MODELS, OUT, ROOT, jpegs, prepare_one
from processes import Processes

from penult.bundle.reader import read_bundle

PEERS = ROOT / ".tools" / "peers" / "bin" / "python"
SERVERS, IN_FLIGHT, SIDE = Path(__file__).with_name("peers"), 8, 224
MOBILE, RESNET = "mobilenet_v3_small", "resnet18"
READY_S, WARM_S = 120.0, 0.5
KSERVE_GOAL, MOSEC_JPEG_GOAL = 1.0, 1.1  # penult's CPU-ms over the peer's, at most


@dataclass(frozen=True)
class Cell:
    """One load."""

    model: str
    is_jpeg: bool
    images: int = 1

    @property
    def name(self) -> str:
        """Return what is sent to which model."""
        return f"{self.model}, {'JPEG' if self.is_jpeg else 'crop'}{f', {self.images} a request' * (self.images > 1)}"


CELLS = (Cell(MOBILE, False), Cell(MOBILE, True), Cell(MOBILE, False, 16), Cell(RESNET, False), Cell(RESNET, True))


@dataclass
class Found:
    """What the turns of a server found."""

    cpu_ms: list[float] = field(default_factory=list)
    images_per_s: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)


class Peer:
    """One server and how it is asked."""

    def __init__(self, name: str, model: str, command: Sequence[str], port: int) -> None:
        """Start it, and wait for its first answer."""
        self.name, self._model, self._target = name, model, f"127.0.0.1:{port}"
        env = {"PEER_BUNDLE": str(MODELS / model / "1")}
        self.processes = Processes(list(command), OUT / f"peer-{name}.log", env)
        until = time.perf_counter() + READY_S
        while not self._answers():
            self.processes.check()
            if time.perf_counter() > until:
                sys.exit(f"{name} did not answer within {READY_S:.0f} s; its log is {OUT / f'peer-{name}.log'}")
            time.sleep(0.02)
        self.ready_s = time.perf_counter() - self.processes.started

    def load(self, cell: Cell, photos: Sequence[bytes]) -> Load:
        """Return the load of a cell."""
        if self.name == "mosec":
            bodies = photos if cell.is_jpeg else payloads.random_crops(cell.images, SIDE)
            return HttpLoad(self._target, "/inference", bodies)
        kserve = self.name == "KServe"
        if cell.is_jpeg:
            make = payloads.infer_jpegs if kserve else payloads.classify_jpegs
            requests = make(self._model, cell.images, photos)
        else:
            make = payloads.infer_crops if kserve else payloads.classify_crops
            requests = make(self._model, cell.images, SIDE)
        return GrpcLoad(self._target, payloads.INFER if kserve else payloads.CLASSIFY, requests)

    def _answers(self) -> bool:
        # A gRPC channel that finds no server waits a second and more before it tries again.
        host, _, port = self._target.rpartition(":")
        try:
            socket.create_connection((host, int(port)), 1).close()
            return self.load(Cell(self._model, False), []).run(1e-3, 1).requests > 0
        except (OSError, SystemExit):
            return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose name holds this")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each server (5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn (1.0)")
    wanted = parser.parse_args()
    if not PEERS.exists():
        sys.exit("the peers are not installed; run make bench-peers")
    OUT.mkdir(exist_ok=True)
    photos, verdicts, starts = jpegs(), [], []
    table_head(("cell", "server", "CPU-ms an image", "÷ ceiling", "penult ÷ it", "images/s", "p50 / p99 ms", "PSS, MB"))
    for model in (MOBILE, RESNET):
        cells = [cell for cell in CELLS if cell.model == model and wanted.only in cell.name]
        if not cells:
            continue
        prepare_one(model)
        ceiling = Ceiling(read_bundle(MODELS / model))
        with peers(model) as servers:
            for cell in cells:
                verdicts += measure(cell, servers, ceiling, photos, wanted.rounds, wanted.seconds)
            starts += [(model, peer.name, f"{peer.ready_s:.1f}") for peer in servers]
    print()
    table_head(("model", "server", "start to first answer, s"))
    for row in starts:
        table_row(*row)
    print("\n" + "\n".join(verdicts))


@contextmanager
def peers(model: str) -> Iterator[list[Peer]]:
    """Start the servers of a model, one after the other."""
    servers: list[Peer] = []
    with tempfile.TemporaryDirectory(dir=OUT) as folder:
        shutil.copytree(MODELS / model, Path(folder) / model)
        ports = [free_port() for _ in range(4)]
        commands = {
            "penult": (sys.executable, "-m", "penult.cli", "serve", "--models", folder, "--port", str(ports[0]),
                       "--metrics-port", "0", "--device", "cpu", "--cpu-mode", "throughput", "--lookup", "off"),
            "mosec": (str(PEERS), str(SERVERS / "mosec_server.py"), "--address", "127.0.0.1", "--port", str(ports[1]),
                      "--timeout", "60000", "--log-level", "error"),
            "KServe": (str(PEERS), str(SERVERS / "kserve_server.py"), "--grpc_port", str(ports[2]),
                       "--http_port", str(ports[3])),
        }  # fmt: skip
        try:
            for (name, command), port in zip(commands.items(), ports, strict=False):
                servers.append(Peer(name, model, command, port))
            yield servers
        finally:
            for server in servers:
                server.processes.stop()


def measure(
    cell: Cell, servers: Sequence[Peer], ceiling: Ceiling, photos: Sequence[bytes], rounds: int, seconds: float
) -> list[str]:
    """Print a row for each server, and return what the goals say."""
    loads = {server: server.load(cell, photos) for server in servers}
    for load in loads.values():
        load.run(WARM_S, IN_FLIGHT)
    found, tops = {server: Found() for server in servers}, []

    def turn(server: Peer) -> None:
        before = server.processes.cpu_s()
        got = loads[server].run(seconds, IN_FLIGHT)
        images, at = got.requests * cell.images, found[server]
        at.cpu_ms.append(1000 * (server.processes.cpu_s() - before) / images)
        at.images_per_s.append(images / got.seconds)
        at.latencies_ms += got.latencies_ms

    def top() -> None:
        tops.append(ceiling.jpeg(seconds, photos) if cell.is_jpeg else ceiling.raw(seconds))

    for _ in range(rounds):
        acts: list[Callable[[], None]] = [top, *(lambda server=server: turn(server) for server in servers)]
        random.shuffle(acts)
        for act in acts:
            act()
    table_row(cell.name, "in-process", spread([at.cpu_ms for at in tops], 2), "1", "",
              f"{median(at.images_per_s for at in tops):.0f}", "", "")  # fmt: skip
    own, verdicts = next(found[server] for server in servers if server.name == "penult"), []
    for server, at in found.items():
        above = [cpu / most.cpu_ms for cpu, most in zip(at.cpu_ms, tops, strict=True)]
        ratios = [cpu / other for cpu, other in zip(own.cpu_ms, at.cpu_ms, strict=True)]
        cuts = quantiles(at.latencies_ms, n=100, method="inclusive")
        table_row(cell.name, server.name, spread(at.cpu_ms, 2), spread(above, 2), spread(ratios, 2),
                  f"{median(at.images_per_s):.0f}", f"{cuts[49]:.1f} / {cuts[98]:.1f}",
                  f"{server.processes.pss_mb():.0f}")  # fmt: skip
        goal = KSERVE_GOAL if server.name == "KServe" else MOSEC_JPEG_GOAL if cell.is_jpeg else None
        if server.name != "penult" and goal:
            verdict = "reached" if median(ratios) <= goal else "MISSED"
            verdicts.append(f"{cell.name}: penult ÷ {server.name} {spread(ratios, 2)} (goal <= {goal}: {verdict})")
    return verdicts


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


if __name__ == "__main__":
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    begun = time.monotonic()
    main()
    print(f"took {time.monotonic() - begun:.0f} s", file=sys.stderr)
