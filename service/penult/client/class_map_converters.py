"""Class maps between messages and plain values, for both clients."""

import numpy as np

from penult.client.types import ClassMap, MapsWanted
from penult.v1 import penult_pb2 as pb


def map_query(wanted: MapsWanted) -> pb.MapQuery:
    """Return which class maps to return, as a message."""
    kind = pb.MAP_FORMAT_FLOAT32 if wanted.is_exact else pb.MAP_FORMAT_UINT8
    return pb.MapQuery(labels=wanted.labels, top=wanted.top, format=kind)


def class_map(found: pb.ClassMap) -> ClassMap:
    """Return a class map."""
    if found.format == pb.MAP_FORMAT_FLOAT32:
        values = np.frombuffer(found.values, dtype="<f4").astype(np.float32)
    else:
        steps = np.frombuffer(found.values, dtype=np.uint8)
        values = np.float32(found.zero) + np.float32(found.scale) * steps.astype(np.float32)
    area = found.area
    return ClassMap(
        found.label,
        values.reshape(found.height, found.width),
        found.offset,
        (area.left, area.top, area.right, area.bottom),
    )
