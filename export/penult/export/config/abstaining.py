"""Options of thresholds below which a model withholds its answer, shared by the commands that certify them."""

from functools import partial

from penult.export.config.shares import share
from penult.settings import setting

MAX_ERROR_HELP = "certify thresholds: share of answers that may be wrong"
max_error = partial(setting, default=None, help_=MAX_ERROR_HELP, read=share, metavar="PERCENT")
PER_CLASS_HELP = "a threshold for each class, not one for all"
PER_CLASS_ALONE = "--per-class has no effect without --max-error: add --max-error"
