"""The service's settings: one frozen dataclass, filled from flags, PENULT_* variables and a TOML file, in that order.

A setting `image_max_bytes` is the flag --image-max-bytes, the variable PENULT_IMAGE_MAX_BYTES and the TOML key
`image_max_bytes`. Names carry their unit, except where DESIGN.md fixes a flag (--drain-lead, --grace: seconds).
"""

import argparse
import math
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from penult.bundle.guards import DEFAULT_LIMITS, ImageLimits
from penult.bundle.manifest import is_model_name, parse_version
from penult.bundle.naming import parent
from penult.bundle.signature import Trust, split_paths, trust
from penult.lookup.opening import has_collections
from penult.proxies import is_loopback
from penult.service.errors import ConfigError
from penult.service.runtime.cpu_count import cores
from penult.service.runtime.cpu_threads import AUTO, CPU_MODES
from penult.service.runtime.cuda_options import GPU_MODES, MAX_IMAGES, GpuOptions

_ENVIRONMENT_PREFIX = "PENULT_"
# The folder of collections.
LOOKUP = "lookup"


def _setting(default: Any, help_: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": help_, "choices": choices})


@dataclass(frozen=True)
class ServeConfig:
    """Everything that can be set. Sizes are bytes, times seconds, queues images."""

    models: Path = _setting(Path("models"), "the model repository: a folder of NAME/VERSION/")
    watch_s: float = _setting(1.0, "seconds between looks at the repository for new and removed versions; 0: never")
    pin: str = _setting("", "serve these versions instead of the newest: NAME=VERSION, several with commas between")
    trusted_key: str = _setting(
        "", "public keys, files with commas between: from then on only bundles that one of them signed are served"
    )
    allow_unsigned: bool = _setting(False, "serve bundles without a signature also where a trusted key is set")
    allow_version_skew: bool = _setting(
        False, "serve SVMs that another major.minor of scikit-learn made, with a warning"
    )
    lookup: str = _setting(
        AUTO,
        "where collections are kept: a folder, postgresql://USER@HOST/DATABASE, milvus://HOST:PORT, or off; auto: the "
        "folder `lookup` beside the model repository",
    )  # fmt: skip
    host: str = _setting("127.0.0.1", "address to listen on; 0.0.0.0 or :: for all")
    port: int = _setting(50051, "gRPC port; 0 picks a free one")
    metrics_port: int = _setting(9095, "HTTP port of /metrics, /livez and /readyz; 0 picks a free one")
    metrics_max_classes: int = _setting(
        1000, "classes of a version with series of their own in /metrics; of more classes, the rest share one"
    )
    http: bool = _setting(False, "the Open Inference Protocol over HTTP too, below /v2 on the metrics port")
    tls_cert: str = _setting("", "PEM file of the server's certificate and those above it; renewed ones are taken up")
    tls_key: str = _setting("", "PEM file of its key, without a passphrase")
    tls_client_ca: str = _setting("", "PEM file: gRPC clients must show a certificate of this authority (mutual TLS)")
    http_tls: bool = _setting(True, "TLS on the HTTP port too, where there is a certificate")
    tokens: str = _setting("", "file of who may ask, by bearer token; penult token NAME adds to it")
    device: str = _setting("auto", "cuda fails at start where CUDA does not work", ("auto", "cuda", "cpu"))
    fronts: int = _setting(
        1, "server processes that share the gRPC port, each with its own copy of every model; needs clients that open "
        "several connections",
    )  # fmt: skip
    threads: int = _setting(
        0, "CPU threads for decoding, and again for the model, of each front; 0: one per core, divided among fronts"
    )
    cpu_mode: str = _setting(
        AUTO, "on CPUs: latency (wide runs), throughput (narrow runs side by side), auto: measured at start", CPU_MODES
    )
    gpu_mode: str = _setting(
        AUTO, "on CUDA: nchw or nhwc (with CUDA graphs), auto: the faster, measured at start; plain: without", GPU_MODES
    )
    gpu_memory_mb: int = _setting(0, "MiB of the GPU's memory that a model's arena may take; 0: no limit")
    batch_max_images: int = _setting(0, "most images per model run; 0: 1 on CPU, 32 on CUDA")
    batch_delay_ms: float = _setting(0.0, "how long an idle model waits for more images to share a run")
    queue_max_images: int = _setting(512, "images accepted and not yet answered; above that: RESOURCE_EXHAUSTED")
    queue_max_bytes: int = _setting(4 << 30, "bytes of those images; above that: RESOURCE_EXHAUSTED")
    request_max_images: int = _setting(256, "images per request")
    message_max_bytes: int = _setting(64 << 20, "bytes per message, both ways")
    image_max_bytes: int = _setting(DEFAULT_LIMITS.max_bytes, "bytes per encoded image")
    image_max_pixels: int = _setting(DEFAULT_LIMITS.max_pixels, "pixels per image")
    image_max_side: int = _setting(DEFAULT_LIMITS.max_side, "pixels per side of an image")
    image_max_scans: int = _setting(DEFAULT_LIMITS.max_scans, "scans of a progressive JPEG")
    image_max_decoded_pixels: int = _setting(
        DEFAULT_LIMITS.max_decoded_pixels, "memory that decoding one image may take, in pixels of 4 bytes: for each "
        "pixel of a PNG 1 or 2, of a WebP 4, of a large JPEG a fraction",
    )  # fmt: skip
    decode_max_pixels: int = _setting(
        100_000_000, "memory of all images being decoded at one time, in pixels of 4 bytes; a larger image goes alone"
    )
    connection_age_s: float = _setting(
        300.0, "seconds after which a connection is asked to end, so that clients spread over new servers; 0: never"
    )
    model_control: str = _setting("off", "let clients load and unload models by RPC", ("off", "on"))
    reflection: str = _setting("auto", "gRPC reflection; auto: on loopback only", ("auto", "on", "off"))
    drain_lead: float = _setting(5.0, "seconds of serving on after SIGTERM, while NOT_SERVING")
    grace: float = _setting(20.0, "seconds after that for accepted requests to finish")
    log_level: str = _setting(
        "info", "least severe log lines; SIGUSR1 switches to debug and back", ("debug", "info", "warning", "error")
    )
    log_format: str = _setting("text", "a line of text, or a JSON object, per event", ("text", "json"))
    try_photos: str = _setting(
        "auto", "let the status page classify photos dropped on it; auto: on loopback only", ("auto", "on", "off")
    )
    trace: str = _setting("", "OTLP/gRPC address of an OpenTelemetry collector, as http://HOST:4317; empty: no tracing")
    trace_share: float = _setting(1.0, "share of requests to trace, 0 to 1, where the caller does not say")
    access_log: float = _setting(0.0, "share of requests, 0 to 1, that get a log line; faults always do, unless 0")

    def __post_init__(self) -> None:
        """Refuse values that cannot work; raise ConfigError."""
        positive = [f.name for f in fields(self) if f.name.endswith(("_bytes", "_pixels", "_side", "_scans"))]
        for name in [*positive, "queue_max_images", "request_max_images", "fronts", "metrics_max_classes"]:
            if getattr(self, name) < 1:
                raise ConfigError("CONFIG", f"{_flag(name)} must be at least 1")
        for name in ("port", "metrics_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ConfigError("CONFIG", f"{_flag(name)} must be a port, 0 to 65535")
        _ = self.pins
        for name in (
            "watch_s",
            "drain_lead",
            "grace",
            "connection_age_s",
            "threads",
            "batch_max_images",
            "batch_delay_ms",
            "gpu_memory_mb",
        ):
            if getattr(self, name) < 0:
                raise ConfigError("CONFIG", f"{_flag(name)} must not be negative")
        for name in ("access_log", "trace_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError("CONFIG", f"{_flag(name)} is a share, 0 to 1")
        if self.model_control == "on" and self.fronts > 1:
            raise ConfigError("CONFIG", "--model-control on reaches one front only; use it with --fronts 1")
        if self.http and self.fronts > 1:
            raise ConfigError("CONFIG", "--http answers from one front only; use it with --fronts 1")
        self._check_transport()
        if self.queue_max_images < self.fronts:
            raise ConfigError("CONFIG", "--queue-max-images must be at least --fronts: each front gets its part of it")

    def _check_transport(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError("CONFIG", "--tls-cert and --tls-key belong together; give both")
        if self.tls_client_ca and not self.tls_cert:
            raise ConfigError(
                "CONFIG", "--tls-client-ca needs a certificate of the server's own: --tls-cert, --tls-key"
            )
        if self.tls_client_ca and self.http and not self.tokens:
            raise ConfigError(
                "CONFIG", "--http asks clients for no certificate; give --tokens too, or leave --http out"
            )

    @property
    def image_limits(self) -> ImageLimits:
        """The limits that the decoder keeps."""
        return ImageLimits(
            self.image_max_bytes, self.image_max_pixels, self.image_max_side, self.image_max_scans,
            self.image_max_decoded_pixels,
        )  # fmt: skip

    @property
    def trust(self) -> Trust:
        """Whose bundles are believed; reads the key files and raises KeyUnusable."""
        return trust(split_paths(self.trusted_key), self.allow_unsigned)

    @property
    def pins(self) -> dict[str, tuple[int, ...]]:
        """The versions to serve of models whose newest is not wanted; raise ConfigError."""
        pinned: dict[str, tuple[int, ...]] = {}
        for part in filter(None, (part.strip() for part in self.pin.split(","))):
            name, _, number = part.partition("=")
            version = parse_version(number)
            if not is_model_name(name) or version is None:
                raise ConfigError("CONFIG", f"--pin {part!r} is not NAME=VERSION, as in pets=3")
            pinned[name] = tuple(sorted({*pinned.get(name, ()), version}))
        return pinned

    @property
    def lookup_place(self) -> str:
        """Where collections are kept: what `lookup` says, "auto" looked up on the disk."""
        if self.lookup != AUTO:
            return self.lookup
        return str(self.old_lookup or self.lookup_beside)

    @property
    def lookup_beside(self) -> Path:
        """The folder of collections beside the model repository."""
        return parent(self.models) / LOOKUP

    @property
    def old_lookup(self) -> Path | None:
        """The collections of earlier releases, in the current folder, if those are what "auto" stands for."""
        here = Path(LOOKUP)
        is_old = self.lookup == AUTO and has_collections(here) and not has_collections(self.lookup_beside)
        return here if is_old else None

    def changed(self) -> dict[str, Any]:
        """Return the settings that are not as they are by default."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    @property
    def gpu_options(self) -> GpuOptions:
        """How models use a GPU."""
        return GpuOptions(self.batch_max_images or MAX_IMAGES, self.gpu_memory_mb, self.gpu_mode)

    @property
    def has_reflection(self) -> bool:
        """Whether clients may ask for the API's description."""
        return self.is_loopback if self.reflection == "auto" else self.reflection == "on"

    @property
    def has_try_photos(self) -> bool:
        """Whether the status page answers photos; where callers must say who they are, only if that is asked for."""
        return (
            self.is_loopback and not (self.tokens or self.tls_client_ca)
            if self.try_photos == "auto"
            else self.try_photos == "on"
        )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)

    @property
    def cpu_threads(self) -> int:
        """Threads of each front: as set, else its part of the cores that this process may use, at least one."""
        return self.threads or max(1, cores() // self.fronts)

    def of_front(self, number: int, port: int, metrics_port: int) -> "ServeConfig":
        """Return the settings of front `number`, 1 and up: its part of the threads and of what bounds memory.

        The parts of the queue add up to the whole; the ports are those that the supervisor found.
        """
        more = number <= self.queue_max_images % self.fronts
        return replace(
            self, fronts=1, port=port, metrics_port=metrics_port, threads=self.cpu_threads,
            queue_max_images=self.queue_max_images // self.fronts + more,
            queue_max_bytes=max(1, self.queue_max_bytes // self.fronts),
            decode_max_pixels=max(1, self.decode_max_pixels // self.fronts),
        )  # fmt: skip

    def as_flags(self, but: str = "") -> list[str]:
        """Return the command line that stands for these settings, `but` for one, whatever variables are set."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != but}
        return [
            f"{_flag(name if value is not False else f'no_{name}')}" + ("" if isinstance(value, bool) else f"={value}")
            for name, value in values.items()
        ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag per setting, and --config."""
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="settings from a TOML file")
    for f in fields(ServeConfig):
        kind: dict[str, Any] = {"type": _reader(f.default), "choices": f.metadata["choices"]}
        if isinstance(f.default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        help_ = f"{f.metadata['help']} ({f.default})"
        parser.add_argument(_flag(f.name), dest=f.name, default=argparse.SUPPRESS, help=help_, **kind)


def from_arguments(arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> ServeConfig:
    """Merge flags, environment and file, in falling precedence; raise ConfigError."""
    defaults = {f.name: f for f in fields(ServeConfig)}
    given: dict[str, Any] = _from_file(arguments.config) if arguments.config else {}
    given |= _from_environment(environment, defaults)
    given |= {name: value for name, value in vars(arguments).items() if name in defaults}
    if unknown := sorted(set(given) - set(defaults)):
        raise ConfigError("CONFIG", f"{arguments.config}: unknown setting {unknown[0]!r}; see penult serve --help")
    return ServeConfig(**{name: _convert(name, value, defaults[name]) for name, value in given.items()})


def _from_environment(environment: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Return the settings among PENULT_* variables.

    Beside a Service called penult, Kubernetes sets PENULT_PORT=tcp://… in every pod: that is no setting of ours.
    """
    found = {name: environment.get(_ENVIRONMENT_PREFIX + name.upper()) for name in names}
    return {name: value for name, value in found.items() if value is not None and not value.startswith("tcp://")}


def _from_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError("CONFIG", f"--config {path}: {error}") from error


def _convert(name: str, value: Any, f: Any) -> Any:
    if isinstance(f.default, bool):
        return _switch(name, value)
    try:
        converted = _reader(f.default)(value)
        # TOML has types of its own: true is no port, 1.5 no count of images, 5 no address.
        if not isinstance(value, str) and (isinstance(value, bool) or converted != value):
            raise ValueError
        if isinstance(converted, float) and not math.isfinite(converted):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ConfigError("CONFIG", f"{_flag(name)}: {value!r} is not {_reader(f.default).__name__}") from None
    if f.metadata["choices"] and converted not in f.metadata["choices"]:
        raise ConfigError("CONFIG", f"{_flag(name)}: {value!r} is not one of {', '.join(f.metadata['choices'])}")
    return converted


def _switch(name: str, value: Any) -> bool:
    words = {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False}
    known = words.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(known, bool):
        raise ConfigError("CONFIG", f"{_flag(name)}: {value!r} is not true or false")
    return known


def _reader(default: Any) -> type:
    return Path if isinstance(default, Path) else type(default)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
