"""The options of `penult bench`, and what contradicts what."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from penult.client.credentials import NONE, Security
from penult.client.types import DEFAULT_TARGET

_TUNE_TRIAL_S = 4.0
_TUNE_WARMUP_S = 1.0
_TUNE_CONCURRENCY = 32


class BenchError(Exception):
    """Settings that cannot be measured; `message` is one line that says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True)
class LoadSettings:
    """One load. `rate` None stands for the closed loop, `requests` None for a fixed time."""

    target: str = DEFAULT_TARGET
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


def settings_of(given: Mapping[str, Any], security: Security) -> BenchSettings:
    """Return the settings that options ask for; those left out are absent. Raises BenchError if they contradict."""
    _refuse_pairs(given)
    defaults: dict[str, Any] = {"target": os.environ.get("PENULT_TARGET", DEFAULT_TARGET)}
    if "tune" in given:
        defaults |= {"duration_s": _TUNE_TRIAL_S, "warmup_s": _TUNE_WARMUP_S, "concurrency": _TUNE_CONCURRENCY}
    else:  # the servers of --tune are on loopback, without security
        defaults["security"] = security
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


def _refuse_pairs(given: Mapping[str, Any]) -> None:
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


def _of(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    return {f.name: given[f.name] for f in fields(kind) if f.name in given}
