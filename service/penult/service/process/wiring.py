"""The values that each room takes from the settings, which only this room and the command line know."""

from pathlib import Path

from penult.service.auth.listeners import ListenerSecurity
from penult.service.config import ServeConfig
from penult.service.inference.pipeline import InferenceLimits
from penult.service.inference.unsure import KeepLimits


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


def keep_limits(config: ServeConfig) -> KeepLimits | None:
    """Return what is kept of callers' images; None if nothing is."""
    if not config.keep_unsure:
        return None
    return KeepLimits(
        Path(config.keep_unsure), config.keep_unsure_below, config.keep_unsure_max_images,
        config.keep_unsure_max_mb << 20,
    )  # fmt: skip


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
