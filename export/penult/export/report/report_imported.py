"""Write MODEL_CARD.md for a model that was trained elsewhere and imported without labelled photos."""

from typing import Any

from penult.bundle.manifest import Manifest
from penult.export.report.report import TEMPLATES


def imported_card(name: str, manifest: Manifest, metrics: dict[str, Any]) -> str:
    """Return the card; `metrics` are the contents of metrics.json."""
    values = {"name": name, "manifest": manifest, "metrics": metrics, "imported": metrics["imported"]}
    return TEMPLATES.get_template("MODEL_CARD_IMPORTED.md").render(values)
