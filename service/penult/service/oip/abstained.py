"""The output that says which answers a model withholds, for models with operating points."""

import math

from penult.service.errors import InvalidRequest
from penult.service.models.loader import ServedModel
from penult.service.oip.tensors import BOOL, TensorSpec

ABSTAINED, MAX_ERROR = "abstained", "max_error"


def abstained_specs(model: ServedModel) -> list[TensorSpec]:
    """Return the output bool [N]; none for a model that never abstains."""
    return [TensorSpec(ABSTAINED, BOOL, (-1,))] if model.manifest.operating_points else []


def max_error_of(given: object) -> float:
    """Return the parameter max_error of a request, a number or its text; raise InvalidRequest."""
    try:
        share = float(given) if isinstance(given, (int, float, str)) and not isinstance(given, bool) else math.nan
    except ValueError:
        share = math.nan
    if not 0 <= share < 1:
        raise InvalidRequest("PARAMETER", "the parameter max_error is a share of wrong answers, such as 0.05")
    return share
