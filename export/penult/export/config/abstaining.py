"""Options of thresholds below which a model withholds its answer, shared by the commands that certify them."""

import argparse
from functools import partial

from penult.settings import setting

_MAX_ERROR = 0.5


def share(text: str) -> float:
    """Read the share of wrong answers that is allowed, such as 5% or 0.05; raise ArgumentTypeError."""
    number = text.strip()
    try:
        value = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value <= _MAX_ERROR:
        raise argparse.ArgumentTypeError(f"{text!r} is no share up to 50%; give one like 5% or 0.05")
    return round(value, 9)


MAX_ERROR_HELP = "certify thresholds: share of answers that may be wrong"
max_error = partial(setting, default=None, help_=MAX_ERROR_HELP, read=share, metavar="PERCENT")
PER_CLASS_HELP = "a threshold for each class, not one for all"
PER_CLASS_ALONE = "--per-class has no effect without --max-error: add --max-error"
