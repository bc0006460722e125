"""Switch off the telemetry of dependencies. The packages that use them import this module first.

onnxruntime 1.29 and later reports to its maker as soon as it is imported. It sends a lasting id of the machine, its
CPU, paths and counts of runs. It keeps the id and unsent data below ~/.cache/Microsoft. It reads the variable once, at
import. `CI` silences it as well, so tests/e2e/test_offline.py runs without it.
"""

import os

# Not setdefault(): an empty value, 0 or a misspelt one would let it report, and penult promises that it does not.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# The hub's client, with which timm downloads weights, would count downloads by version of Python and PyTorch.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
