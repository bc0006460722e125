"""`penult quantize`: a version in fewer bits."""

import argparse
from typing import Any

from penult.cli.published import check_given, publish_next


def run(arguments: argparse.Namespace) -> int:
    """Convert, measure and publish; return 0."""
    from penult.export.quantize_settings import from_arguments

    settings = from_arguments(arguments)

    def publish() -> Any:
        check_given(settings)
        from penult.export.lower_precision import quantize

        return quantize(settings)

    return publish_next(arguments, publish, lambda metrics: {settings.to: metrics[settings.to]})
