"""`penult quantize`: publish a model as int8 or float16."""

import argparse
from typing import Any

from penult.cli.published import publish_next
from penult.export.config.quantize import QuantizeSettings

add_arguments = QuantizeSettings.add_arguments


def run(arguments: argparse.Namespace) -> int:
    """Convert, measure and publish; return 0."""
    from penult.export.jobs.preflight import check_next_version

    settings = QuantizeSettings.load(arguments)
    check_next_version(settings)

    def publish() -> Any:
        from penult.export.jobs.quantize import quantize

        return quantize(settings)

    return publish_next(arguments, publish, lambda metrics: {settings.to: metrics[settings.to]})
