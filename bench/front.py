"""The front alone: what a request costs without a model, beside bare gRPC servers, in one interleaved run.

    python bench/front.py [--only WORD] [--rounds N] [--quick] [--beside TREE]

`bench/null_runtime.py` serves. One dimension of the base case (one crop, 8 in flight, 1 connection) is varied at a
time. CPU-ms is of the server's processes, by their CPU clocks. Requests a second include the load generator on the same
cores. `--beside` adds penult from another checkout. The parts `where` (shares of CPU time and of calls) and `GPU` (a
stand-in of 0.2 ms an image) come last.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import payloads
from generators import GrpcLoad, Load, StreamLoad
from prepare import MODELS, OUT, SHARED, prepare_one
from processes import Processes

from penult.bench.photos import made_up
from penult.bundle.reader import read_bundle

CORES = len(os.sched_getaffinity(0))
NETWORK = "mobilenet_v3_small"
ROUNDS, SECONDS, WARM_S, IN_FLIGHT = 5, 1.0, 0.3, 8
GPU_IMAGE_MS, GPU_BATCH, GPU_CORES, CORES_A_WORKER = 0.2, 32, 16, 2
OPTIONS = ("--port", "0", "--metrics-port", "0", "--device", "cpu", "--cpu-mode", "throughput", "--lookup", "off",
           "--watch-s", "0", "--drain-lead", "0", "--log-level", "error")  # fmt: skip
# Which library a file that perf names belongs to.
LIBRARIES = {
    "interpreter": ("python3", "libpython"), "gRPC": ("cygrpc",), "kernel": ("[kernel", "[vdso"),
    "NumPy": ("numpy", "multiarray", "openblas"), "Protobuf": ("_message", "upb"),
    "libc": ("libc.", "libm.", "ld-linux"),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One load."""

    name: str
    kind: str = "crop"
    images: int = 1
    in_flight: int = IN_FLIGHT
    connections: int = 1


CASES = (
    Case("1 crop, the base"),
    Case("crop, 16 a request", images=16),
    Case("crop, 64 a request", images=64, in_flight=4),
    Case("JPEG, 1 a request", "JPEG"),
    Case("JPEG, 16 a request", "JPEG", images=16),
    Case("stream of crops", "stream"),
    Case("OIP, 1 crop", "OIP"),
    Case("OIP, 16 crops a request", "OIP", images=16),
    *(Case(f"crop, {count} in flight", in_flight=count) for count in (1, 32, 128)),
    *(Case(f"crop, {count} connections", connections=count) for count in (4, 16)),
)
GPU_CASES = (
    Case("GPU: 1 crop", in_flight=64, connections=4),
    Case("GPU: 1 JPEG", "JPEG", in_flight=64, connections=4),
    Case("GPU: 16 crops", images=16, connections=4),
    Case("GPU: 16 JPEGs", "JPEG", images=16, connections=4),
)


@dataclass(frozen=True)
class Row:
    """What a server took for one turn of a case, for each request."""

    cpu_ms: float
    per_s: float
    system: float
    switches: float
    client_ms: float


class Front:
    """A server without a model, ready to be asked."""

    def __init__(self, name: str, command: list[str], env: dict[str, str] | None = None) -> None:
        """Start it and wait until it is ready."""
        self.name = name
        log = OUT / f"front-{name.replace(' ', '-')}.log"
        self.processes = Processes([sys.executable, *command], log, env, is_asked=True)
        words = self.processes.read().split()
        self.target = next(word.removeprefix("grpc=") for word in words if word.startswith("grpc="))

    def load(self, case: Case, requests: Sequence[bytes]) -> Load:
        """Return the load of a case."""
        if case.kind == "stream":
            return StreamLoad(self.target, payloads.STREAM, requests, case.connections)
        method = payloads.INFER if case.kind == "OIP" else payloads.CLASSIFY
        return GrpcLoad(self.target, method, requests, case.connections)

    def turn(self, load: Load, seconds: float, in_flight: int) -> Row:
        """Ask for a while."""
        at, own = self.processes, time.process_time()
        cpu, (user, system), switches = at.cpu_s(), at.user_and_system_s(), at.switches()
        found = load.run(seconds, in_flight)
        count, (user_after, system_after) = found.requests, at.user_and_system_s()
        share = (system_after - system) / max(1e-9, user_after - user + system_after - system)
        return Row(
            1000 * (at.cpu_s() - cpu) / count, count / found.seconds, share, (at.switches() - switches) / count,
            1000 * (time.process_time() - own) / count,
        )  # fmt: skip


class Bench:
    """The model, its requests, and how long to ask."""

    def __init__(self, models: Path, rounds: int, seconds: float) -> None:
        """Read what requests depend on."""
        (folder,) = (path for path in models.iterdir() if path.is_dir() and not path.name.startswith("."))
        self.models, self.model, self.rounds, self.seconds = models, folder.name, rounds, seconds
        self.side = read_bundle(folder).manifest.preprocess.crop
        self.photos = made_up(seed=0)

    def penult(self, name: str, *null: str, tree: Path | None = None) -> Front:
        """Start penult, from this checkout or another one, with options of null_runtime.py."""
        paths = os.pathsep.join(str(tree / part) for part in ("proto", "service", "export")) if tree else ""
        script = str(Path(__file__).with_name("null_runtime.py"))
        env = {"PYTHONPATH": paths} if tree else None
        return Front(name, [script, *null, "serve", "--models", str(self.models), *OPTIONS], env)

    def requests(self, case: Case) -> list[bytes]:
        """Return the serialised requests of a case."""
        if case.kind == "JPEG":
            return payloads.classify_jpegs(self.model, case.images, self.photos)
        make = payloads.infer_crops if case.kind == "OIP" else payloads.classify_crops
        return make(self.model, case.images, self.side)

    def measure(self, fronts: Sequence[Front], case: Case) -> dict[str, list[Row]]:
        """Let the servers take turns, round by round."""
        requests = self.requests(case)
        loads = [(front, front.load(case, requests)) for front in fronts]
        for _, load in loads:
            load.run(WARM_S, case.in_flight)
        rows: dict[str, list[Row]] = {front.name: [] for front in fronts}
        for _ in range(self.rounds):
            loads = [*loads[1:], loads[0]]
            for front, load in loads:
                rows[front.name].append(front.turn(load, self.seconds, case.in_flight))
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="parts whose name holds this: a case, where or GPU")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each server ({ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="three short turns")
    parser.add_argument("--beside", type=Path, help="another checkout, to compare with")
    wanted = parser.parse_args()
    rounds, seconds = (min(3, wanted.rounds), 0.4) if wanted.quick else (wanted.rounds, SECONDS)
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OUT) as folder:
        bench = Bench(one_model(Path(folder)), rounds, seconds)
        cases = [case for case in CASES if wanted.only in case.name]
        if cases or wanted.only in "where":
            bare = str(Path(__file__).with_name("bare_servers.py"))
            fronts = [bench.penult("penult"), Front("bare aio", [bare, "aio"]), Front("bare sync", [bare, "sync"])]
            if wanted.beside:
                fronts.append(bench.penult(f"penult of {wanted.beside.name}", tree=wanted.beside.resolve()))
            found = alone(bench, fronts, cases)
            rows = {case: {name: list(map(vars, turns)) for name, turns in by.items()} for case, by in found.items()}
            (OUT / "front.json").write_text(json.dumps(rows, indent=2) + "\n")
            a_core(cases, found)
            if wanted.only in "where":
                where(bench, fronts)
            for front in fronts:
                front.processes.stop()
        if gpu_cases := [case for case in GPU_CASES if wanted.only in case.name]:
            stand_in_gpu(bench, gpu_cases)


def one_model(folder: Path) -> Path:
    """Return a folder with one model of 224 pixels: a trained one, or random weights if there are no photos."""
    if not (MODELS / NETWORK / "1").is_dir() and not SHARED.is_dir():
        from gpu_parts import make_bundle

        make_bundle(folder, NETWORK, cuda=False)
        return folder
    prepare_one(NETWORK)
    shutil.copytree(MODELS / NETWORK, folder / NETWORK)
    return folder


def alone(bench: Bench, fronts: Sequence[Front], cases: Sequence[Case]) -> dict[str, dict[str, list[Row]]]:
    """Print a row for each case and server, and return all turns."""
    heads = (
        "case",
        "server",
        "CPU-ms [quartiles]",
        "requests/s",
        "penult ÷ it, CPU",
        "kernel",
        "switches",
        "client CPU-ms",
    )
    print(f"{CORES} cores, {bench.rounds} turns of {bench.seconds} s; medians, all for each request", flush=True)
    table_head(heads)
    found: dict[str, dict[str, list[Row]]] = {}
    for case in cases:
        rows = found[case.name] = bench.measure(fronts, case)
        for name, turns in rows.items():
            ratios = [own.cpu_ms / other.cpu_ms for own, other in zip(rows["penult"], turns, strict=True)]
            table_row(
                case.name, name, spread([row.cpu_ms for row in turns], 3), f"{median(row.per_s for row in turns):.0f}",
                "1" if name == "penult" else spread(ratios, 2), f"{median(row.system for row in turns):.0%}",
                f"{median(row.switches for row in turns):.1f}", f"{median(row.client_ms for row in turns):.2f}",
            )  # fmt: skip
    return found


def a_core(cases: Sequence[Case], found: dict[str, dict[str, list[Row]]]) -> None:
    """Print how much penult's front answers with the CPU time of one core, for docs/sizing.md."""
    print("\npenult, of one core that does nothing else")
    table_head(("case", "CPU-ms a request", "requests/s", "images/s"))
    for case in cases:
        if case.connections == 1 and (case.in_flight == IN_FLIGHT or case.images > 1):
            cpu = median(row.cpu_ms for row in found[case.name]["penult"])
            table_row(case.name, f"{cpu:.2f}", f"{1000 / cpu:.0f}", f"{1000 * case.images / cpu:.0f}")


def where(bench: Bench, fronts: Sequence[Front]) -> None:
    """Print the shares of CPU time by library, and calls by library, for the base case."""
    case = CASES[0]
    if shutil.which("perf"):
        names = [*LIBRARIES, "other"]
        print("\nshares of CPU time, base case (perf, cpu-clock)")
        table_head(("server", *names))
        for front in fronts:
            load = front.load(case, bench.requests(case))
            shares = profiled(front, lambda load=load: load.run(max(2.0, bench.seconds), case.in_flight))
            table_row(front.name, *(f"{shares[name]:.0%}" for name in names))
    else:
        print("\nperf is not installed here, so shares of CPU time by library are left out", flush=True)
    from front_calls import Counted

    with Counted(bench.models) as server:
        counts = server.count("crop")
    print("\ncalls of Python and C functions for a request of one crop, by library")
    table_head(("library", "calls"))
    for library, calls in counts.by_library().most_common(12):
        table_row(library, f"{calls:.1f}")


def profiled(front: Front, act: Callable[[], object]) -> Counter[str]:
    """Return the share of each library in the CPU time of a server, while `act` asks it."""
    with tempfile.TemporaryDirectory() as folder:
        data, pids = f"{folder}/perf", ",".join(map(str, front.processes.pids()))
        command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "999", "-o", data, "-p", pids]
        recorder = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        act()
        recorder.terminate()
        recorder.wait(30)
        report = subprocess.run(
            ["perf", "report", "-i", data, "--sort", "dso", "--stdio", "-q"], capture_output=True, text=True, check=True
        ).stdout
    shares: Counter[str] = Counter()
    for line in report.splitlines():
        words = line.split(maxsplit=1)
        if len(words) == 2 and words[0].endswith("%"):
            owner = (name for name, parts in LIBRARIES.items() if any(part in words[1] for part in parts))
            shares[next(owner, "other")] += float(words[0][:-1]) / 100
    return shares


def stand_in_gpu(bench: Bench, cases: Sequence[Case]) -> None:
    """Print images a second with a stand-in GPU here, and what CPU time lets expect of more cores."""
    front = bench.penult("penult for a GPU", "--image-ms", str(GPU_IMAGE_MS), "--device-batches")
    most, workers = 1000 / GPU_IMAGE_MS, GPU_CORES // CORES_A_WORKER
    print(f"\na stand-in GPU of {GPU_IMAGE_MS} ms an image, batches of up to {GPU_BATCH}: {most:.0f} images/s at most")
    table_head(("case", "CPU-ms an image", f"images/s on {CORES} cores, with the load generator",
                f"extrapolated: {GPU_CORES} cores, --workers {workers}"))  # fmt: skip
    for case in cases:
        (turns,) = bench.measure([front], case).values()
        cpu = median(row.cpu_ms for row in turns) / case.images
        table_row(
            case.name, f"{cpu:.3f}", spread([row.per_s * case.images for row in turns], 0),
            f"{min(most, GPU_CORES * 1000 / cpu):.0f} (the fronts alone: {GPU_CORES * 1000 / cpu:.0f})",
        )  # fmt: skip
    print(f"Extrapolated, not measured: {GPU_CORES} cores ÷ CPU-ms an image, at most what the stand-in does; the load\n"
          "comes from other machines, and workers do not disturb each other.", flush=True)  # fmt: skip
    front.processes.stop()


def table_head(names: Sequence[str]) -> None:
    print(f"| {' | '.join(names)} |\n|{' --- |' * len(names)}", flush=True)


def table_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def spread(values: Sequence[float], digits: int) -> str:
    """Return the median and the quartiles."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return f"{median(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


if __name__ == "__main__":
    begun = time.monotonic()
    main()
    print(f"took {time.monotonic() - begun:.0f} s", file=sys.stderr)
