"""Where log lines go and what they look like; one place, for a server alone and for a supervisor of several."""

import logging
import sys
from dataclasses import asdict

from penult.service.config import ServeConfig

log = logging.getLogger("penult.server")


def start_log(config: ServeConfig) -> None:
    """Send log lines to standard error, and the settings as the first of them."""
    logging.basicConfig(
        level=config.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    log.info("settings: %s", " ".join(f"{name}={value}" for name, value in asdict(config).items()))
