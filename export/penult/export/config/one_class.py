"""Options of models with one class, shared by `penult train` and `penult svm`."""

from functools import partial

from penult.export.config.shares import share
from penult.settings import setting

# As penult.bundle.manifest has them, which takes longer to import.
NEAREST, SVM = MEASURES = ("nearest", "svm")
# As for models of several classes (evaluation/drift_baseline.py).
FALSE_ALARMS = 0.025

measure = partial(setting, help_="measure of novelty with one class", choices=MEASURES)
false_alarms = partial(
    setting, help_="share of one class's images that may count as novel", read=share, metavar="PERCENT"
)
outliers = partial(setting, None, "images of other things than the one class, to report on", metavar="DIR")
