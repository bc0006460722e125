"""Learning: from labelled photos to a checked bundle. Needs the `export` extra; the service never imports it."""

import os

import penult.offline  # noqa: F401 - before onnxruntime, which torch.onnx imports too

# Threads of PyTorch's OpenMP spin while they wait: on a machine with other work that made learning three to four times
# slower. The runtime reads this once, when torch is imported, which happens below this package only.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
