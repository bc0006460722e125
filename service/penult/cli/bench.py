"""`penult bench`: put load on a server and measure it, or tune its settings."""

import argparse
import os
from pathlib import Path

from penult.bench.settings import settings_of
from penult.cli.arguments import add_security_arguments, count, security_of
from penult.client.types import DEFAULT_TARGET


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `penult bench`. Those left out are absent, so that contradictions show."""
    parser.argument_default = argparse.SUPPRESS
    _add_target(parser)
    _add_load(parser)
    _add_inputs(parser)
    _add_length(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write bench.json and bench.png (tune.…) there")
    _add_tune(parser)


def _add_target(parser: argparse.ArgumentParser) -> None:
    target = os.environ.get("PENULT_TARGET", DEFAULT_TARGET)
    parser.add_argument("--target", metavar="HOST:PORT", help=f"the server ({target})")
    parser.add_argument(
        "--metrics", metavar="URL", help="its metrics, e.g. http://HOST:9095/metrics: adds its CPU time and batch size"
    )
    parser.add_argument("--model", metavar="NAME", help="which model (default: the only one served)")
    parser.add_argument("--version", type=count, metavar="V", help="which version (default: the newest)")
    parser.add_argument("--rpc", choices=("classify", "describe"), help="what is asked (classify)")
    parser.add_argument("--scorer", choices=("dense", "svm"), help="what names the classes (default: the model's own)")
    parser.add_argument("--timeout", type=float, dest="timeout_s", metavar="S", help="seconds per request (30)")
    add_security_arguments(parser)


def _add_load(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("load")
    group.add_argument(
        "--concurrency", type=int, metavar="N", help="closed loop: N workers, each sends when it was answered (8)"
    )
    group.add_argument(
        "--rate",
        type=float,
        metavar="IMAGES_PER_S",
        help="open loop: send on a schedule, answered or not; latency counts from the time a request was due",
    )
    group.add_argument(
        "--arrivals",
        choices=("poisson", "uniform"),
        help="the schedule of --rate: at random, as independent users come, or evenly (poisson)",
    )
    group.add_argument(
        "--stream", dest="is_stream", action="store_true", help="closed loop: each worker holds one stream"
    )
    group.add_argument("--window", type=int, metavar="N", help="requests on their way per stream (2)")
    group.add_argument("--connections", type=int, metavar="N", help="TCP connections to share among workers (1)")


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("photos")
    group.add_argument("--images-per-request", type=int, metavar="N", help="photos per request (1)")
    group.add_argument(
        "--photos", type=Path, metavar="FOLDER", help="send its JPEG, PNG and WebP files (default: made-up JPEGs)"
    )
    group.add_argument(
        "--raw",
        dest="is_raw",
        action="store_true",
        help="send pixels at the model's own size, so that the server decodes and resizes nothing",
    )


def _add_length(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("length")
    group.add_argument("--duration", type=float, dest="duration_s", metavar="S", help="seconds measured (10; tune: 4)")
    group.add_argument(
        "--warmup", type=float, dest="warmup_s", metavar="S", help="seconds before, not counted (2; tune: 1)"
    )
    group.add_argument("--requests", type=int, metavar="N", help="measure N requests, in place of --duration")


def _add_tune(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tune", "find settings of penult serve for this load and this machine")
    group.add_argument("--tune", action="store_true", help="start own servers on loopback and try settings")
    group.add_argument("--models", type=Path, metavar="FOLDER", help="the model repository (models)")
    group.add_argument("--device", choices=("auto", "cuda", "cpu"), help="where they run (auto)")
    group.add_argument(
        "--goal",
        choices=("balanced", "throughput", "latency"),
        help="balanced: most images/s with p99 within 1.5x of the best (balanced; with --rate: latency)",
    )
    group.add_argument(
        "--config",
        type=Path,
        metavar="FILE.toml",
        help="start from this file of penult serve, and write what was found into it; other lines stay",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure or tune; return the exit code."""
    settings = settings_of(vars(arguments), security_of(arguments))
    from penult.bench.run import bench  # gRPC and the numbers, which --help does not need

    return bench(settings)
