"""Switches off what dependencies send by themselves. Imported before any of them: by the packages that use them.

onnxruntime 1.29 and later reports to its maker from the moment it is imported: a lasting id of the machine, its CPU,
paths and counts of runs. It keeps the id and what is not yet sent below ~/.cache/Microsoft. It reads the variable once,
at import. `CI` silences it as well, so tests under CI see nothing of it; tests/e2e/test_offline.py runs without.
"""

import os

# Not setdefault(): an empty value, 0 or a misspelt one would let it report, and penult promises that it does not.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
