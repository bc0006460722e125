"""`penult svm`: fit a new SVM on a bundle's descriptors, from photos or from stored items."""

import argparse
import os
from typing import Any

from penult.cli.published import publish_next
from penult.console import Bar
from penult.export.config.refit import RefitSettings

add_arguments = RefitSettings.add_arguments


def run(arguments: argparse.Namespace) -> int:
    """Fit and publish; return 0."""
    from penult.export.jobs.preflight import check_next_version

    settings = RefitSettings.load(arguments)
    check_next_version(settings)

    def publish() -> Any:
        if settings.from_collection:
            return _refit_stored(settings)
        from penult.export.jobs.refit import refit

        return refit(settings)

    return publish_next(arguments, publish, _pick)


def _pick(metrics: dict[str, Any]) -> dict[str, object]:
    """Return what --json says beside the metrics: the kernel, unless novelty is all that the model scores."""
    return {"kernel": metrics["svm"]["kernel"]} if "svm" in metrics else {}


def _refit_stored(settings: Any) -> Any:
    """Fetch the items of a collection that have a label, and fit on their descriptors. Raises RequestFailed."""
    import numpy as np

    from penult.client import DEFAULT_TARGET, Client, RequestFailed, Security
    from penult.client.hints import explaining
    from penult.client.tools.collection_pages import collection_info, pages

    target = os.environ.get("PENULT_TARGET", DEFAULT_TARGET)
    security, name = Security.from_environment(), settings.from_collection
    found = []
    with explaining(target, security, collection=name), Client(target, security=security) as client:
        info = collection_info(client, name)
        with Bar(info.items) as bar:
            for page in pages(client, name, descriptors=True):
                found += [item for item in page if item.label]
                bar.add(len(page))
        if not found:
            line = f"no item of {name} has a label; put the items again, with labels"
            raise RequestFailed("FAILED_PRECONDITION", "NO_LABELS", line)
    from penult.export.jobs.refit_stored import Stored, refit_stored

    vectors = np.stack([item.descriptor for item in found if item.descriptor is not None])
    ids, labels = tuple(item.id for item in found), tuple(item.label for item in found)
    return refit_stored(settings, Stored(info.name, info.fingerprint, ids, labels, vectors))
