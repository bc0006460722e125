"""The settings of `penult serve`: what each is, how they fit together, and what follows from them.

Names have their unit, except the fixed flags --drain-lead and --grace (seconds).
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from penult.bundle.formats import FORMATS, SERVED, can_read_heic
from penult.bundle.guards import DEFAULT_LIMITS, ImageLimits
from penult.bundle.manifest import is_model_name, parse_version
from penult.bundle.naming import parent
from penult.bundle.signature import Trust, split_paths, trust
from penult.extras import how_to_install
from penult.lookup.opening import has_collections
from penult.nearest import did_you_mean
from penult.proxies import is_loopback
from penult.service.errors import ConfigError
from penult.service.runtime.cpu_count import cores
from penult.service.runtime.cpu_threads import AUTO, CPU_MODES
from penult.service.runtime.cuda_options import GPU_MODES, MAX_IMAGES, GpuOptions
from penult.settings import Settings, flag, setting

# The folder of collections.
LOOKUP = "lookup"
_count = partial(setting, minimum=1)
_amount = partial(setting, minimum=0)
_port = partial(setting, minimum=0, maximum=65535)
_share = partial(setting, minimum=0, maximum=1)
_file = partial(setting, "", metavar="FILE")
_auto = partial(setting, "auto", choices=("auto", "on", "off"))


@dataclass(frozen=True)
class ServeConfig(Settings):
    """Everything that can be set. Sizes are bytes, times seconds, queues images."""

    HAS_JSON: ClassVar[bool] = False

    models: Path = setting(Path("models"), "model repository, a folder of NAME/VERSION/", group="models")
    watch_s: float = _amount(1.0, "seconds between polls of the repository; 0: never")
    pin: str = setting("", "versions to serve instead of the newest, comma-separated", metavar="NAME=VERSION")
    shadow: str = setting(
        "", "versions to compare with those that clients get, comma-separated", metavar="NAME=VERSION"
    )
    shadow_share: float = _share(0.1, "share of requests that these see after the answer")
    trusted_key: str = _file("public key files, comma-separated; then only bundles they signed are served")
    allow_unsigned: bool = setting(False, "also serve unsigned bundles if a trusted key is set")
    allow_version_skew: bool = setting(False, "also serve SVMs of another scikit-learn major.minor version")
    model_control: str = setting("off", "let clients load and unload models by RPC", choices=("off", "on"))
    lookup: str = setting(
        AUTO, "folder, postgresql://… or milvus://… of collections; auto: beside the models", metavar="PLACE"
    )

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 or :: for all", metavar="ADDRESS", group="network")
    port: int = _port(50051, "gRPC port; 0: any free port")
    metrics_port: int = _port(9095, "HTTP port of metrics, probes and status page; 0: any free port")
    http: bool = setting(False, "also serve the Open Inference Protocol over HTTP, below /v2")
    reflection: str = _auto("serve gRPC reflection; auto: on loopback only")
    try_photos: str = _auto("let the status page classify dropped images; auto: on loopback only")
    connection_age_s: float = _amount(300.0, "seconds until a client must reconnect, to spread load; 0: never")

    tls_cert: str = _file("PEM file of the server's certificate chain; reloaded when it changes", group="security")
    tls_key: str = _file("PEM file of the server's key, without a passphrase")
    tls_client_ca: str = _file("PEM file of the authority that gRPC clients must be certified by")
    http_tls: bool = setting(True, "use TLS on the HTTP port too, if there is a certificate")
    tokens: str = _file("file of accepted bearer tokens; penult token NAME adds one")

    device: str = setting(
        "auto", "where models run; cuda fails at start without CUDA", choices=("auto", "cuda", "cpu"), group="execution"
    )
    workers: int = _count(1, "server processes on one gRPC port, each with every model", alias="fronts")
    threads: int = _amount(0, "CPU threads per worker; 0: one per core, divided among workers")
    cpu_mode: str = setting(AUTO, "runs on CPUs: latency one wide, throughput and auto many narrow", choices=CPU_MODES)
    gpu_mode: str = setting(
        AUTO, "layout on CUDA, plain without CUDA graphs; auto measures at start", choices=GPU_MODES
    )
    gpu_memory_mb: int = _amount(0, "MiB of GPU memory per model; 0: no limit")
    batch_max_images: int = _amount(0, "images per model run; 0: 1-4 on CPU, 32 on CUDA")
    batch_delay_ms: float = _amount(0.0, "milliseconds that an idle model waits for more images")

    queue_max_images: int = _count(512, "images in flight; more are rejected with RESOURCE_EXHAUSTED", group="limits")
    queue_max_bytes: int = _count(4 << 30, "bytes of images in flight; more are rejected with RESOURCE_EXHAUSTED")
    request_max_images: int = _count(256, "images per request")
    message_max_bytes: int = _count(64 << 20, "bytes per message, in both directions")
    image_formats: str = setting(
        ",".join(kind.lower() for kind in SERVED),
        "accepted formats, comma-separated; also avif, tiff, bmp, gif, heic", metavar="FORMATS",
    )  # fmt: skip
    image_max_bytes: int = _count(DEFAULT_LIMITS.max_bytes, "bytes per encoded image")
    image_max_pixels: int = _count(DEFAULT_LIMITS.max_pixels, "pixels per image")
    image_max_side: int = _count(DEFAULT_LIMITS.max_side, "pixels per side of an image")
    image_max_scans: int = _count(DEFAULT_LIMITS.max_scans, "scans of a progressive JPEG")
    image_max_decoded_pixels: int = _count(
        DEFAULT_LIMITS.max_decoded_pixels, "memory to decode one image, in pixels of 4 bytes"
    )
    decode_max_pixels: int = _count(100_000_000, "memory to decode images at one time, in pixels of 4 bytes")

    keep_unsure: str = setting(
        "", "folder that stores novel and low-probability images of callers; default: none", metavar="DIR",
        group="stored images",
    )  # fmt: skip
    keep_unsure_below: float = _share(0.6, "probability below which an image is stored")
    keep_unsure_max_images: int = _count(1000, "images stored, of all models")
    keep_unsure_max_mb: int = _count(1000, "MiB of images stored, of all models")

    feedback: str = setting(
        "", "folder that stores feedback; default: none, only counts in memory", metavar="DIR", group="feedback",
    )  # fmt: skip
    feedback_max_mb: int = _count(100, "MiB of feedback stored")
    feedback_answers: int = _count(20_000, "answers that each worker remembers for feedback")
    feedback_photos_mb: int = _amount(0, "MiB of photos held to store labelled ones; 0: none")

    drain_lead: float = _amount(5.0, "seconds to serve after SIGTERM while not ready", group="shutdown")
    grace: float = _amount(20.0, "seconds after that to finish accepted requests")

    log_level: str = setting(
        "info", "lowest level to log; SIGUSR1 toggles debug", choices=("debug", "info", "warning", "error"),
        group="observability",
    )  # fmt: skip
    log_format: str = setting("text", "a line of text or a JSON object per event", choices=("text", "json"))
    access_log: float = _share(0.0, "share of requests to log, 0 to 1; above 0, failures too")
    trace: str = setting("", "OTLP/gRPC address of a collector, as http://HOST:4317; default: no traces", metavar="URL")
    trace_share: float = _share(1.0, "share of requests to trace, 0 to 1, unless the caller decides")
    metrics_max_classes: int = _count(1000, "classes of a version with a series each in /metrics")

    def __post_init__(self) -> None:
        """Reject values that cannot work; raise ConfigError."""
        super().__post_init__()
        _ = self.pins, self.accepted_formats
        self._check_shadows()
        if self.model_control == "on" and self.workers > 1:
            raise self.error("--model-control on reaches one worker only; use it with --workers 1")
        if self.http and self.workers > 1:
            raise self.error("--http answers from one worker only; use it with --workers 1")
        self._check_transport()
        if self.feedback_photos_mb and not self.feedback:
            raise self.error("--feedback-photos-mb stores photos in the folder of feedback; give --feedback DIR too")
        if self.queue_max_images < self.workers:
            raise self.error("--queue-max-images must be at least --workers: each worker gets its part of it")

    @staticmethod
    def error(message: str) -> Exception:
        """Return the error of a setting that cannot work."""
        return ConfigError("CONFIG", message)

    def _check_shadows(self) -> None:
        for name, version in self.shadows.items():
            if version in self.pins.get(name, ()):
                raise self.error(f"--shadow {name}={version} is pinned too, so clients get it; pin another version")
        if self.shadows and self.workers > 1:
            raise self.error("--shadow compares the answers of one worker only; use it with --workers 1")

    def _check_transport(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise self.error("--tls-cert and --tls-key belong together; give both")
        if self.tls_client_ca and not self.tls_cert:
            raise self.error("--tls-client-ca needs the server's own certificate: --tls-cert, --tls-key")
        if self.tls_client_ca and self.http and not self.tokens:
            raise self.error("--http asks clients for no certificate; give --tokens too, or leave --http out")

    @property
    def image_limits(self) -> ImageLimits:
        """The limits that the decoder keeps."""
        return ImageLimits(
            self.image_max_bytes, self.image_max_pixels, self.image_max_side, self.image_max_scans,
            self.image_max_decoded_pixels, self.accepted_formats,
        )  # fmt: skip

    @property
    def accepted_formats(self) -> tuple[str, ...]:
        """The formats that the decoder accepts, as FORMATS names them; raise ConfigError."""
        wanted = [part.strip().upper() for part in self.image_formats.split(",") if part.strip()]
        for name in wanted:
            if name not in FORMATS:
                known = [kind.lower() for kind in FORMATS]
                hint = did_you_mean(name.lower(), known)
                raise self.error(f"--image-formats {name.lower()} is not one of {', '.join(known)}{hint}")
        if not wanted:
            raise self.error("--image-formats names no format; leave it out for jpeg,png,webp")
        if "HEIC" in wanted and not can_read_heic():
            raise self.error(f"--image-formats heic needs pi-heif; {how_to_install('heic')}")
        return tuple(kind for kind in FORMATS if kind in wanted)

    @property
    def trust(self) -> Trust:
        """Read the trusted keys; raise KeyUnusable if a key file is invalid."""
        return trust(split_paths(self.trusted_key), self.allow_unsigned)

    @property
    def pins(self) -> dict[str, tuple[int, ...]]:
        """The versions to serve of models whose newest is not wanted; raise ConfigError."""
        pinned: dict[str, tuple[int, ...]] = {}
        for name, version in self._named("--pin", self.pin):
            pinned[name] = tuple(sorted({*pinned.get(name, ()), version}))
        return pinned

    @property
    def shadows(self) -> dict[str, int]:
        """The version of each model that is only compared; raise ConfigError."""
        found: dict[str, int] = {}
        for name, version in self._named("--shadow", self.shadow):
            if found.setdefault(name, version) != version:
                raise self.error(f"--shadow names two versions of {name}; one is compared at a time")
        return found

    def _named(self, option: str, text: str) -> Iterator[tuple[str, int]]:
        """Yield the names and versions of an option; raise ConfigError."""
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, number = part.partition("=")
            version = parse_version(number)
            if not is_model_name(name) or version is None:
                raise self.error(f"{option} {part!r} is not NAME=VERSION, as in pets=3")
            yield name, version

    @property
    def lookup_place(self) -> str:
        """Return the store of collections; "auto" is resolved on the disk."""
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
        """Return True if the status page classifies photos; with authentication only if `try_photos` is "on"."""
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
        """Threads of each worker: as set, else its part of the cores that this process may use, at least one."""
        return self.threads or max(1, cores() // self.workers)

    def of_worker(self, number: int, port: int, metrics_port: int) -> "ServeConfig":
        """Return the settings of worker `number`, 1 and up: its part of the threads and of what bounds memory.

        The parts of the queue add up to the whole; the ports are those that the supervisor found.
        """
        more = number <= self.queue_max_images % self.workers
        return replace(
            self, workers=1, port=port, metrics_port=metrics_port, threads=self.cpu_threads,
            queue_max_images=self.queue_max_images // self.workers + more,
            queue_max_bytes=max(1, self.queue_max_bytes // self.workers),
            decode_max_pixels=max(1, self.decode_max_pixels // self.workers),
            feedback_photos_mb=-(-self.feedback_photos_mb // self.workers),
        )  # fmt: skip

    def as_flags(self, but: str = "") -> list[str]:
        """Return the command line that stands for these settings, `but` for one, whatever variables are set."""
        values = {flag(f): getattr(self, f.name) for f in fields(self) if f.name != but}
        return [
            (name if value else name.replace("--", "--no-", 1)) if isinstance(value, bool) else f"{name}={value}"
            for name, value in values.items()
        ]
