"""The values that each room takes from the settings, which only this room and the command line know."""

from dataclasses import replace
from pathlib import Path

from penult.bundle.guards import PixelBudget
from penult.service.auth.listeners import ListenerSecurity
from penult.service.config import ServeConfig
from penult.service.inference.admission import RequestAdmission
from penult.service.inference.decoder import Decoder
from penult.service.inference.limits import InferenceLimits
from penult.service.inference.shadow import Shadows
from penult.service.inference.unsure import KeepLimits
from penult.service.models.loader import Placement
from penult.service.observability.metrics import Metrics
from penult.service.runtime.cpu_threads import THROUGHPUT


def inference_limits(config: ServeConfig) -> InferenceLimits:
    """Return what the pipeline may use."""
    return InferenceLimits(
        threads=config.cpu_threads,
        cpu_batch_images=config.batch_max_images,
        device_batch_images=config.gpu_options.most_images,
        batch_delay_s=config.batch_delay_ms / 1000,
        queue_images=config.queue_max_images,
        queue_bytes=config.queue_max_bytes,
        decode_pixels=config.decode_max_pixels,
        image=config.image_limits,
    )


def placement(config: ServeConfig) -> Placement:
    """Return where models run."""
    return Placement(config.device, config.cpu_mode, config.cpu_threads, config.gpu_options, config.allow_version_skew)


def shadow_placement(config: ServeConfig) -> Placement:
    """Return where shadows run: one image at a time, on one thread."""
    return replace(placement(config), cpu_mode=THROUGHPUT, cores=1, gpu=replace(config.gpu_options, most_images=1))


def keep_limits(config: ServeConfig) -> KeepLimits | None:
    """Return what is kept of callers' images; None if nothing is."""
    if not config.keep_unsure:
        return None
    return KeepLimits(
        Path(config.keep_unsure), config.keep_unsure_below, config.keep_unsure_max_images,
        config.keep_unsure_max_mb << 20,
    )  # fmt: skip


def shadows(config: ServeConfig, admission: RequestAdmission, metrics: Metrics) -> Shadows | None:
    """Return what compares versions after the answer; None if there is none. It is shed when a request is refused."""
    if not config.shadows:
        return None
    decoder = Decoder(config.image_limits, PixelBudget(config.decode_max_pixels))
    found = Shadows(
        config.shadows, config.shadow_share, decoder, lambda: admission.is_empty, metrics, config.feedback_answers
    )
    admission.listeners.append(found.shed)
    return found


def listener_security(config: ServeConfig) -> ListenerSecurity:
    """Return what guards the ports."""
    return ListenerSecurity(
        tls_cert=_path(config.tls_cert),
        tls_key=_path(config.tls_key),
        tls_client_ca=_path(config.tls_client_ca),
        tokens=_path(config.tokens),
        has_http_tls=config.http_tls,
    )


def _path(text: str) -> Path | None:
    return Path(text) if text else None
