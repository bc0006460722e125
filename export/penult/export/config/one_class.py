"""Options of models with one class, shared by `penult train` and `penult svm`."""

import argparse
from functools import partial

from penult.settings import setting

# As penult.bundle.manifest has them, which takes longer to import.
NEAREST, SVM = MEASURES = ("nearest", "svm")
# As for models of several classes (evaluation/drift_baseline.py).
FALSE_ALARMS = 0.025
_MAX_FALSE_ALARMS = 0.5


def share(text: str) -> float:
    """Read a share, such as 1% or 0.01; raise ArgumentTypeError."""
    number = text.strip()
    try:
        value = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value <= _MAX_FALSE_ALARMS:
        raise argparse.ArgumentTypeError(f"{text!r} is no share up to 50%; give one like 1% or 0.01")
    return value


measure = partial(setting, help_="measure of novelty with one class", choices=MEASURES)
false_alarms = partial(
    setting, help_="share of one class's images that may count as novel", read=share, metavar="PERCENT"
)
outliers = partial(setting, None, "images of other things than the one class, to report on", metavar="DIR")
