"""Requests, serialised: crops that are the network's input already, and JPEGs, of penult.v1 and OIP."""

import os
import struct
from collections.abc import Sequence

from penult.oip import grpc_service_pb2 as oip
from penult.v1 import penult_pb2 as pb

CLASSIFY, STREAM, INFER = (
    "/penult.v1.PenultService/Classify",
    "/penult.v1.PenultService/StreamClassify",
    "/inference.GRPCInferenceService/ModelInfer",
)
_DIFFERENT = 4  # requests, of images that differ


def random_crops(images: int, side: int) -> list[bytes]:
    """Return the pixels of a few batches of random crops."""
    return [os.urandom(images * side * side * 3) for _ in range(_DIFFERENT)]


def groups(photos: Sequence[bytes], images: int) -> list[list[bytes]]:
    """Return every photo once, in groups of so many."""
    return [[photos[(first + n) % len(photos)] for n in range(images)] for first in range(0, len(photos), images)]


def classify_crops(model: str, images: int, side: int) -> list[bytes]:
    """Return requests of so many random crops each."""
    size = side * side * 3
    return [
        _classify(model, [
            pb.Image(raw=pb.RawImage(height=side, width=side, is_crop=True, rgb=pixels[first : first + size]))
            for first in range(0, len(pixels), size)
        ])
        for pixels in random_crops(images, side)
    ]  # fmt: skip


def classify_jpegs(model: str, images: int, photos: Sequence[bytes]) -> list[bytes]:
    """Return requests of so many photos each."""
    return [_classify(model, [pb.Image(encoded=photo) for photo in group]) for group in groups(photos, images)]


def infer_crops(model: str, images: int, side: int) -> list[bytes]:
    """Return OIP requests of so many random crops each."""
    return [_infer(model, "pixels", "UINT8", [images, side, side, 3], raw) for raw in random_crops(images, side)]


def infer_jpegs(model: str, images: int, photos: Sequence[bytes]) -> list[bytes]:
    """Return OIP requests of so many photos each."""
    return [
        _infer(model, "image", "BYTES", [images], b"".join(struct.pack("<I", len(p)) + p for p in group))
        for group in groups(photos, images)
    ]


def _classify(model: str, images: list[pb.Image]) -> bytes:
    request = pb.ClassifyRequest(images=images, scorer=pb.SCORER_DENSE, top_k=5)
    request.model.name = model
    return request.SerializeToString()


def _infer(model: str, name: str, datatype: str, shape: list[int], raw: bytes) -> bytes:
    tensor = oip.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    return oip.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[raw]).SerializeToString()
