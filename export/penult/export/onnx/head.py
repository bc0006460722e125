"""Cut the dense head, from descriptors to logits, out of an exported model."""

import io

import onnx
import onnx.utils

from penult.bundle.manifest import Manifest


def cut_head(model: bytes, manifest: Manifest) -> bytes:
    """Return the part of an ONNX model between its descriptor and its logits, as a model of its own."""
    whole = onnx.load(io.BytesIO(model))
    part = onnx.utils.Extractor(whole).extract_model([manifest.descriptor_name], [manifest.logits_name])
    data: bytes = part.SerializeToString()
    return data
