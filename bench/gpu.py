"""The GPU in numbers, as ratios within one run: bound session, PyTorch, and the service with crops and with JPEGs.

Usage: bench/gpu.sh says how to carry it to a machine with a GPU; there it runs `python3 bench/gpu.py --out $OUT`.
`--dry` runs the same lines on the CPU with a tiny network, to know that they work: its numbers mean nothing.

Goals (research/ceilings.md, section 4): session / PyTorch float16 under a CUDA graph >= 0.8; crops over gRPC / session
>= 0.7; JPEGs over gRPC / the smaller of session and cores x decode rate >= 0.8; p99 at half the saturated rate <= 3
lone calls. Prints a line per measurement, then writes gpu.json into --out. Exits 0 when all was measured, whether goals
were met or not, 1 where a part failed, 2 where there is no GPU.
"""

import argparse
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch  # before onnxruntime: it brings CUDA and cuDNN
from gpu_load import Load, drive
from gpu_parts import make_bundle, pictures, serving, torch_reference

from penult.bench.settings import LoadSettings
from penult.bundle.preprocess import crop_encoded
from penult.bundle.reader import read_bundle
from penult.export.networks.network import PenultNet
from penult.service.models.loader import Placement, load
from penult.service.runtime.cuda_options import GpuOptions
from penult.service.runtime.cuda_session import DeviceSession
from penult.service.runtime.session import CPU, CUDA, Session, has_cuda_device

CORES = len(os.sched_getaffinity(0))
NEEDS = (
    "bench/gpu.py needs an NVIDIA GPU with its driver, a CUDA build of PyTorch and onnxruntime-gpu: {missing}. "
    "`bench/gpu.sh pack` carries what is missing to such a machine; --dry runs all but the GPU here."
)


@dataclass
class Bench:
    """One run: what was asked for, and what has been measured. Rates are images per second."""

    dry: bool
    out: Path
    arch: str
    batch: int
    seconds: float
    fronts: int
    clients: int
    figures: dict[str, object] = field(default_factory=dict)
    ratios: dict[str, dict[str, object]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def note(self, name: str, value: object) -> None:
        """Keep a figure and print it."""
        self.figures[name] = value
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}", flush=True)

    def ratio(self, name: str, value: float, goal: float, at_most: bool = False) -> None:
        """Keep a ratio and print it beside its goal."""
        met = value <= goal if at_most else value >= goal
        self.ratios[name] = {"value": value, "goal": f"{'<=' if at_most else '>='} {goal}", "met": met}
        verdict = "dry run, means nothing" if self.dry else "met" if met else "MISSED"
        print(f"== {name}: {value:.3f} (goal {'<=' if at_most else '>='} {goal}: {verdict})", flush=True)

    def attempt(self, name: str, act: Callable[[], None]) -> None:
        """Run a part; if it fails, record its name and traceback, and continue."""
        try:
            act()
        except Exception:
            self.failures.append(name)
            print(f"!! {name} failed:\n{traceback.format_exc()}", flush=True)


def main() -> int:
    arguments = parse()
    if not arguments.dry and (missing := missing_parts()):
        print(NEEDS.format(missing=missing), file=sys.stderr)
        return 2
    logging.basicConfig(format="%(name)s: %(message)s", stream=sys.stdout)
    logging.getLogger("penult").setLevel("INFO")  # it says which layout was chosen, and why the fast way was not
    bench = Bench(
        arguments.dry, arguments.out, arguments.arch, arguments.batch, arguments.seconds, arguments.fronts,
        arguments.clients,
    )  # fmt: skip
    if bench.dry:
        bench.arch, bench.batch, bench.seconds, bench.clients = "tiny5", 8, 0.7, 1
    bench.out.mkdir(parents=True, exist_ok=True)
    describe(bench)
    try:
        with tempfile.TemporaryDirectory(prefix="penult-bench-") as folder:
            measure(bench, Path(folder))
    finally:
        record = {"figures": bench.figures, "ratios": bench.ratios, "failures": bench.failures}
        (bench.out / "gpu.json").write_text(json.dumps(record, indent=2) + "\n")
        print(f"written: {bench.out / 'gpu.json'}")
    return 1 if bench.failures else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="a tiny network on the CPU, to see that the script works")
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT", "bench-out")), help="folder for gpu.json"
    )
    parser.add_argument("--arch", default="resnet50", help="architecture with seeded random weights (resnet50)")
    parser.add_argument("--batch", type=int, default=64, help="most images per run (64)")
    parser.add_argument("--seconds", type=float, default=6.0, help="seconds per measurement (6)")
    parser.add_argument("--fronts", type=int, default=0, help="front processes for one more measurement (0: none)")
    parser.add_argument(
        "--clients", type=int, default=max(1, CORES // 4), help="load processes (a quarter of the cores)"
    )
    return parser.parse_args()


def missing_parts() -> str:
    """Say what is missing for a run on a GPU, or nothing."""
    if not has_cuda_device():
        return "the driver finds no GPU here"
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no GPU here"
    import onnxruntime

    return "" if CUDA in onnxruntime.get_available_providers() else "this onnxruntime has no CUDA provider"


def describe(bench: Bench) -> None:
    import onnxruntime

    gpu = "none (dry run)" if bench.dry else torch.cuda.get_device_name(0)
    bench.note("machine", f"{gpu}, {CORES} cores, Python {platform.python_version()}")
    bench.note("versions", f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, numpy {np.__version__}")
    bench.note(
        "plan", f"{bench.arch} float16, batches of {bench.batch}, {bench.seconds:g} s each, {bench.clients} clients"
    )


def measure(bench: Bench, folder: Path) -> None:
    net = make_bundle(folder / "models", bench.arch, cuda=not bench.dry)
    session = bound_session(bench, folder)
    bench.attempt("pytorch", lambda: against_pytorch(bench, folder, net, session))
    bench.attempt("decode", lambda: decode(bench, folder))
    bench.attempt("service", lambda: service(bench, folder, 0))
    if bench.fronts:
        bench.attempt("fronts", lambda: service(bench, folder, bench.fronts))


def bound_session(bench: Bench, folder: Path) -> float:
    """Load the bundle as the service does; return its images per second in full batches."""
    bundle = read_bundle(folder / "models" / "bench")
    gpu = GpuOptions(bench.batch)
    model = load(bundle, Placement("cpu" if bench.dry else "cuda", gpu=gpu))
    session = model.session
    if bench.dry:  # the same buckets and bindings, on the CPU
        session = DeviceSession(bundle.onnx, bundle.manifest, bench.batch)
        session.warm()
    assert session.provider == (CPU if bench.dry else CUDA), session.provider
    bench.note("golden_difference", model.golden_difference)
    bench.note("fast_way", isinstance(session, DeviceSession))
    crops = [crop_encoded(picture, bundle.manifest.preprocess) for picture in pictures()]
    for size in sorted({1, 8, bench.batch}):
        images = [crops[n % len(crops)] for n in range(size)]
        rate, call_ms = rate_of(lambda images=images: session.run_images(images), size, bench.seconds / 3)
        bench.note(f"session_batch_{size}", rate)
        bench.note(f"session_batch_{size}_ms", call_ms)
    plain = Session(bundle.onnx, bundle.manifest, "cpu" if bench.dry else "cuda")
    bench.note("plain_session", rate_of(lambda: plain.run_images(images), bench.batch, bench.seconds / 3)[0])
    bench.note("session_over_plain", bench.figures[f"session_batch_{bench.batch}"] / bench.figures["plain_session"])
    if isinstance(session, DeviceSession):
        session.close()
    return bench.figures[f"session_batch_{bench.batch}"]


def against_pytorch(bench: Bench, folder: Path, net: PenultNet, session: float) -> None:
    bundle = read_bundle(folder / "models" / "bench")
    run, on_device = torch_reference(net, bundle.manifest.preprocess, bench.batch, cuda=not bench.dry)
    crops = bundle.goldens.crops
    images = [crops[n % len(crops)] for n in range(bench.batch)]
    expected = bundle.goldens.logits
    found = run(images)[0][: len(expected)]
    bench.note("pytorch_difference", float(np.abs(found - expected).max() / np.abs(expected).max()))
    rate = rate_of(lambda: run(images), bench.batch, bench.seconds / 2)[0]
    bench.note("pytorch_float16_graph", rate)
    bench.note("pytorch_replay_alone", rate_of(on_device, bench.batch, bench.seconds / 2)[0])
    bench.ratio("session / PyTorch float16 graph", session / rate, 0.8)


def decode(bench: Bench, folder: Path) -> None:
    spec = read_bundle(folder / "models" / "bench").manifest.preprocess
    sources = pictures()
    rate = rate_of(lambda: [crop_encoded(s, spec) for s in sources], len(sources), bench.seconds / 2)[0]
    bench.note("decode_one_core", rate)
    bench.note("jpeg_bytes", statistics.mean(map(len, sources)))


def service(bench: Bench, folder: Path, fronts: int) -> None:
    """Measure crops, JPEGs and latency through gRPC, with as many front processes as asked for (0: none apart)."""
    options = ["--device", "cpu" if bench.dry else "cuda", "--batch-max-images", str(bench.batch)]
    options += ["--fronts", str(fronts)] if fronts else []
    prefix = f"fronts_{fronts}_" if fronts else ""
    label = f" ({fronts} fronts)" if fronts else ""
    log = bench.out / f"{prefix}serve.log"
    log.unlink(missing_ok=True)
    session = bench.figures[f"session_batch_{bench.batch}"]
    with serving(folder / "models", log, *options) as server:
        bench.note(f"{prefix}ready_s", float(server["seconds"]))
        assert server["provider"] == (CPU if bench.dry else CUDA), server["provider"]
        bench.note(f"{prefix}service_fast_way", bench.dry or "RUNS SLOWLY" not in log.read_text())
        # As many connections as requests in flight: the kernel gives each to one of the fronts.
        full = LoadSettings(target=server["grpc"], is_raw=True, images_per_request=min(32, bench.batch), concurrency=4,
                            connections=4, duration_s=bench.seconds)  # fmt: skip
        raw = told(bench, f"{prefix}crops", drive(full, bench.clients))
        bench.ratio(f"crops / session{label}", raw.images_per_s / session, 0.7)
        latency(bench, prefix, label, full, raw)
        if "decode_one_core" in bench.figures:
            photos = replace(full, is_raw=False, images_per_request=16)
            encoded = told(bench, f"{prefix}jpegs", drive(photos, bench.clients))
            ceiling = min(session, CORES * bench.figures["decode_one_core"])
            bench.ratio(f"JPEGs / min(session, cores x decode){label}", encoded.images_per_s / ceiling, 0.8)


def latency(bench: Bench, prefix: str, label: str, full: LoadSettings, saturated: Load) -> None:
    """Compare the slowest hundredth at half the saturated rate with a call that has the service to itself."""
    lone = told(bench, f"{prefix}lone", drive(replace(full, concurrency=1, connections=1), 1))
    rate = saturated.images_per_s / 2
    half = told(bench, f"{prefix}half", drive(replace(full, rate=rate, arrivals="uniform"), bench.clients))
    bench.ratio(f"p99 at half the rate / lone call{label}", half.p99_ms / lone.p50_ms, 3.0, at_most=True)


def told(bench: Bench, name: str, load: Load) -> Load:
    bench.note(name, {key: round(value, 2) for key, value in asdict(load).items()})
    if load.errors:
        raise RuntimeError(f"{name}: {load.errors} of {load.errors + load.requests} requests failed")
    return load


def rate_of(act: Callable[[], object], images: int, seconds: float) -> tuple[float, float]:
    """Return images per second and the median call in ms, after three calls to warm up."""
    for _ in range(3):
        act()
    calls = []
    started = time.perf_counter()
    while len(calls) < 5 or time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        act()
        calls.append(time.perf_counter() - begun)
    return images * len(calls) / sum(calls), 1000 * statistics.median(calls)


if __name__ == "__main__":
    sys.exit(main())
