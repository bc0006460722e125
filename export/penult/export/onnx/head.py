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


def reads_descriptor(model: bytes, manifest: Manifest) -> bool:
    """Return whether the logits depend on the image through the descriptor alone, so that the head can be cut out."""
    wanted = {manifest.logits_name}
    for node in reversed(onnx.load(io.BytesIO(model)).graph.node):
        if wanted & set(node.output) - {manifest.descriptor_name}:
            wanted |= set(node.input)
    return manifest.descriptor_name in wanted and manifest.input_name not in wanted
