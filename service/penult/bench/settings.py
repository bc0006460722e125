"""The options of `penult bench`, and what contradicts what."""

import argparse
import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from penult.cli.client_arguments import count
from penult.client.credentials import NONE, Security, add_security_arguments
from penult.client.credentials import from_arguments as security_of

_TARGET = "127.0.0.1:50051"
_TUNE_TRIAL_S = 4.0
_TUNE_WARMUP_S = 1.0
_TUNE_CONCURRENCY = 32


class BenchError(Exception):
    """Nothing can be measured this way; `message` is one line that says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True)
class LoadSettings:
    """One load. `rate` None stands for the closed loop, `requests` None for a fixed time."""

    target: str = _TARGET
    rpc: str = "classify"
    model: str = ""
    version: int = 0
    scorer: str | None = None
    concurrency: int = 8
    rate: float | None = None
    arrivals: str = "poisson"
    is_stream: bool = False
    window: int = 2
    connections: int = 1
    images_per_request: int = 1
    photos: Path | None = None
    is_raw: bool = False
    duration_s: float = 10.0
    warmup_s: float = 2.0
    requests: int | None = None
    timeout_s: float = 30.0
    metrics: str | None = None
    seed: int = 0
    security: Security = field(default=NONE, repr=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be sent or measured; raise BenchError."""
        for name in ("concurrency", "window", "connections", "images_per_request", "requests"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise BenchError(f"--{name.replace('_', '-')} must be at least 1")
        for name, value in (("duration", self.duration_s), ("timeout", self.timeout_s), ("rate", self.rate)):
            if value is not None and not 0 < value < math.inf:
                raise BenchError(f"--{name} must be a number above 0")
        if not 0 <= self.warmup_s < math.inf:
            raise BenchError("--warmup must not be negative")
        if self.photos and not self.photos.is_dir():
            raise BenchError(f"--photos {self.photos}: no JPEG, PNG or WebP file there; name a folder that holds some")
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        if self.rate is not None and self.is_stream:
            raise BenchError("--rate sends on a schedule, --stream as answers come: leave one of them out")
        if self.rpc == "describe" and self.scorer:
            raise BenchError("--rpc describe uses no scorer: leave --scorer out")
        if self.is_raw and self.photos:
            raise BenchError("--raw sends noise of the model's size, --photos files: leave one of them out")

    @property
    def in_flight(self) -> int | None:
        """Most requests waiting for an answer at one time, None in the open loop."""
        return None if self.rate else self.concurrency * (self.window if self.is_stream else 1)


@dataclass(frozen=True)
class TuneSettings:
    """What `--tune` adds: where the models are, what is wanted, which file gets the answer."""

    models: Path | None = None
    device: str | None = None
    goal: str = "balanced"
    config: Path | None = None

    @property
    def config_if_there(self) -> Path | None:
        """The file to start from, None where it is still to be made."""
        return self.config if self.config and self.config.exists() else None


@dataclass(frozen=True)
class BenchSettings:
    """The whole command line; `tune` None stands for measuring a server that runs already."""

    load: LoadSettings
    tune: TuneSettings | None = None
    out: Path | None = None
    as_json: bool = False


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
    target = os.environ.get("PENULT_TARGET", _TARGET)
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
        "--rate", type=float, metavar="IMAGES_PER_S",
        help="open loop: send on a schedule, answered or not; latency counts from the time a request was due",
    )  # fmt: skip
    group.add_argument(
        "--arrivals", choices=("poisson", "uniform"),
        help="the schedule of --rate: at random, as independent users come, or evenly (poisson)",
    )  # fmt: skip
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
        "--raw", dest="is_raw", action="store_true",
        help="send pixels at the model's own size, so that the server decodes and resizes nothing",
    )  # fmt: skip


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
        "--goal", choices=("balanced", "throughput", "latency"),
        help="balanced: most images/s with p99 within 1.5x of the best (balanced; with --rate: latency)",
    )  # fmt: skip
    group.add_argument(
        "--config", type=Path, metavar="FILE.toml",
        help="start from this file of penult serve, and write what was found into it; other lines stay",
    )  # fmt: skip


def from_arguments(arguments: argparse.Namespace) -> BenchSettings:
    """Put the options together; raise BenchError where they contradict each other."""
    given = vars(arguments)
    _refuse_pairs(given)
    defaults: dict[str, Any] = {"target": os.environ.get("PENULT_TARGET", _TARGET)}
    if "tune" in given:
        defaults |= {"duration_s": _TUNE_TRIAL_S, "warmup_s": _TUNE_WARMUP_S, "concurrency": _TUNE_CONCURRENCY}
    if "tune" not in given:  # its own servers are on loopback, and plain
        defaults["security"] = security_of(arguments)
    load = LoadSettings(**defaults | _of(LoadSettings, given))
    tune = None
    if "tune" in given:
        _check_config(given.get("config"))
        goal = {"goal": "latency" if load.rate else "balanced"}
        tune = TuneSettings(**goal | _of(TuneSettings, given))
    return BenchSettings(load, tune, given.get("out"), given.get("json", False))


def _check_config(config: Path | None) -> None:
    """Refuse a new file whose name promises another format than the one that is written. Raises BenchError."""
    if config and not config.exists():
        if config.suffix.lower() != ".toml":
            raise BenchError(f"--config {config}: settings are written as TOML; name a file that ends in .toml")
        if not config.parent.is_dir():
            raise BenchError(f"--config {config}: there is no folder {config.parent}; make it first")


def _refuse_pairs(given: dict[str, Any]) -> None:
    for one, other, why in (
        ("rate", "concurrency", "a schedule has no workers: leave --rate or --concurrency out"),
        ("requests", "duration_s", "--requests is in place of --duration: leave one of them out"),
        ("tune", "target", "--tune starts its own servers: leave --target out"),
        ("tune", "metrics", "--tune starts its own servers: leave --metrics out"),
    ):
        if one in given and other in given:
            raise BenchError(why)
    for name, needed in (
        ("arrivals", "rate"),
        ("window", "is_stream"),
        *((f.name, "tune") for f in fields(TuneSettings)),
    ):
        if name in given and needed not in given:
            raise BenchError(f"--{name} means something only with --{needed.removeprefix('is_')}")


def _of(kind: type, given: dict[str, Any]) -> dict[str, Any]:
    return {f.name: given[f.name] for f in fields(kind) if f.name in given}
