"""The options of `penult bench`, and what contradicts what."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from penult.client.credentials import NONE, Security
from penult.client.types import DEFAULT_TARGET
from penult.folders.names import PHOTOS
from penult.settings import Settings, setting

_TUNE_TRIAL_S = 4.0
_TUNE_WARMUP_S = 1.0
_TUNE_CONCURRENCY = 32
_target = os.environ.get("PENULT_TARGET", DEFAULT_TARGET)


def _version(text: str) -> int:
    """Read a version. On the wire 0 means the newest, so 0 is rejected here."""
    if not 1 <= (version := int(text)) < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {2**32 - 1}")
    return version


_count = partial(setting, minimum=1, metavar="N")
_seconds = partial(setting, metavar="S")


class BenchError(Exception):
    """Settings that cannot be measured; `message` is one line that says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True)
class _Options(Settings):
    PREFIX: ClassVar[str] = "PENULT_BENCH_"

    @staticmethod
    def error(message: str) -> Exception:
        """Return the error of a value out of range."""
        return BenchError(message)


@dataclass(frozen=True)
class LoadSettings(_Options):
    """One load. `rate` None stands for the closed loop, `requests` None for a fixed time."""

    target: str = setting(DEFAULT_TARGET, "address of the server", metavar="HOST:PORT", shown=_target, group="server")
    metrics: str | None = setting(None, "its metrics page, for CPU time and batch sizes", metavar="URL")
    model: str = setting("", "name of the model", metavar="NAME", shown="the only one served")
    version: int = setting(0, "version of the model", read=_version, metavar="V", shown="the newest")
    rpc: str = setting("classify", "RPC to call", choices=("classify", "describe"))
    scorer: str | None = setting(None, "scorer of the labels", choices=("dense", "svm"), shown="the model's own")
    timeout_s: float = _seconds(30.0, "seconds per request", above=0, name="timeout")

    concurrency: int = _count(8, "closed loop: N workers that each wait for an answer", group="load")
    rate: float | None = setting(
        None, "open loop: send on a schedule, answered or not", above=0, metavar="IMAGES_PER_S"
    )
    arrivals: str = setting("poisson", "schedule of --rate: random or even", choices=("poisson", "uniform"))
    is_stream: bool = setting(False, "closed loop: each worker holds one stream", name="stream")
    window: int = _count(2, "requests in flight per stream")
    connections: int = _count(1, "TCP connections to share among workers")

    images_per_request: int = _count(1, "images per request", group="images")
    photos: Path | None = setting(None, "folder of image files to send", metavar="FOLDER", shown="generated JPEGs")
    is_raw: bool = setting(False, "send pixels of the model's input size, not files", name="raw")

    duration_s: float = _seconds(
        10.0, "seconds to measure", above=0, name="duration", shown="10; --tune: 4", group="length"
    )
    warmup_s: float = _seconds(2.0, "seconds before, not measured", minimum=0, name="warmup", shown="2; --tune: 1")
    requests: int | None = _count(None, "measure N requests, in place of --duration")
    seed: int = 0
    security: Security = field(default=NONE, repr=False)

    def __post_init__(self) -> None:
        """Reject what cannot be sent or measured; raise BenchError."""
        super().__post_init__()
        if self.photos and not self.photos.is_dir():
            raise BenchError(f"--photos {self.photos}: no {PHOTOS} file there; name a folder that holds some")
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
class TuneSettings(_Options):
    """What `--tune` adds: where the models are, what is wanted, which file gets the answer."""

    models: Path | None = setting(
        None, "model repository", metavar="FOLDER", shown="models", group="settings of penult serve, with --tune"
    )
    device: str | None = setting(None, "where models run", choices=("auto", "cuda", "cpu"), shown="auto")
    goal: str = setting(
        "balanced", "balanced: most images/s with p99 within 1.5x of the best",
        choices=("balanced", "throughput", "latency"), shown="balanced; latency with --rate",
    )  # fmt: skip
    config: Path | None = setting(
        None, "file of penult serve to start from and to write the result to", metavar="FILE.toml"
    )

    @property
    def config_if_there(self) -> Path | None:
        """The file to start from, None if it does not exist yet."""
        return self.config if self.config and self.config.exists() else None


@dataclass(frozen=True)
class BenchSettings:
    """The whole command line; `tune` None stands for measuring a server that runs already."""

    load: LoadSettings
    tune: TuneSettings | None = None
    out: Path | None = None
    as_json: bool = False


def settings_of(
    flags: Mapping[str, Any], security: Security, environment: Mapping[str, str] = os.environ
) -> BenchSettings:
    """Return the settings that flags and variables ask for; raise BenchError if they contradict each other."""
    is_tuning = flags.get("tune", False)
    given = LoadSettings.given(flags, environment=environment)
    _refuse_pairs(dict(flags) | given, is_tuning)
    defaults: dict[str, Any] = {"target": environment.get("PENULT_TARGET", DEFAULT_TARGET)}
    if is_tuning:
        defaults |= {"duration_s": _TUNE_TRIAL_S, "warmup_s": _TUNE_WARMUP_S, "concurrency": _TUNE_CONCURRENCY}
    else:  # the servers of --tune are on loopback, without security
        defaults["security"] = security
    load = LoadSettings(**defaults | given)
    tune = None
    if is_tuning:
        _check_config(flags.get("config"))
        goal = {"goal": "latency" if load.rate else "balanced"}
        tune = TuneSettings(**goal | TuneSettings.given(flags, environment=environment))
    return BenchSettings(load, tune, flags.get("out"), flags.get("json", False))


def _check_config(config: Path | None) -> None:
    """Refuse a new file whose name promises another format than the one that is written. Raises BenchError."""
    if config and not config.exists():
        if config.suffix.lower() != ".toml":
            raise BenchError(f"--config {config}: settings are written as TOML; name a file that ends in .toml")
        if not config.parent.is_dir():
            raise BenchError(f"--config {config}: there is no folder {config.parent}; make it first")


def _refuse_pairs(given: Mapping[str, Any], is_tuning: bool) -> None:
    for one, other, why in (
        ("rate", "concurrency", "a schedule has no workers: leave --rate or --concurrency out"),
        ("requests", "duration_s", "--requests is in place of --duration: leave one of them out"),
        ("tune", "target", "--tune starts its own servers: leave --target out"),
        ("tune", "metrics", "--tune starts its own servers: leave --metrics out"),
    ):
        if one in given and other in given and (one != "tune" or is_tuning):
            raise BenchError(why)
    for name, needed in (
        ("arrivals", "rate"),
        ("window", "is_stream"),
        *((f.name, "tune") for f in fields(TuneSettings)),
    ):
        if name in given and not given.get(needed):
            raise BenchError(f"--{name} has no effect without --{needed.removeprefix('is_')}")
