"""Learning: from labelled photos to a checked bundle. Needs the `export` extra; the service never imports it.

`train`, `svm`, `calibrate`, `inspect`, `compare` and `import_model` are commands as functions (docs/python.md).
"""

import os
from typing import TYPE_CHECKING, Any

import penult.offline  # noqa: F401 - before onnxruntime, which torch.onnx imports too

if TYPE_CHECKING:
    from penult.export.jobs.api import calibrate, compare, import_model, inspect, svm, train

__all__ = ["calibrate", "compare", "import_model", "inspect", "svm", "train"]

# Threads of PyTorch's OpenMP spin while they wait: on a machine with other work that made learning three to four times
# slower. The runtime reads this once, when torch is imported, which happens below this package only.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    """Return a function of the API, which brings its libraries along only if it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from penult.export.jobs import api

    return getattr(api, name)
