"""Serving: photos in, classes and descriptors out, over gRPC. Never imports torch.

A request walks: server → servicer → pipeline → decoding → batching → session → scorer → servicer.
"""

import penult.offline  # noqa: F401 - before onnxruntime
