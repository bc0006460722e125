"""`penult svm`: a new SVM on a bundle's descriptors, from photos or from stored items."""

import argparse
import os
from typing import Any

from penult.cli.published import publish_next


def run(arguments: argparse.Namespace) -> int:
    """Fit and publish; return 0."""
    from penult.export.config.refit import RefitSettings
    from penult.export.jobs.early import check_next_version

    settings = RefitSettings.load(arguments)
    check_next_version(settings)

    def publish() -> Any:
        if settings.from_collection:
            return _refit_stored(settings)
        from penult.export.jobs.refit import refit

        return refit(settings)

    return publish_next(arguments, publish, lambda metrics: {"kernel": metrics["svm"]["kernel"]})


def _refit_stored(settings: Any) -> Any:
    """Fetch a collection's labelled items from a server, and fit on them."""
    from penult.cli.labelled_items import labelled_items
    from penult.client import DEFAULT_TARGET, Client
    from penult.client.credentials import Security
    from penult.client.hints import explaining

    target = os.environ.get("PENULT_TARGET", DEFAULT_TARGET)
    security, name = Security.from_environment(), settings.from_collection
    with explaining(target, security, collection=name), Client(target, security=security) as client:
        told, items = labelled_items(client, name)
    from penult.export.jobs.refit_stored import Stored, refit_stored

    ids, labels, descriptors = items
    return refit_stored(settings, Stored(told.name, told.fingerprint, ids, labels, descriptors))
