"""A typed client of penult.v1: Client for plain code, AsyncClient for asyncio. Needs only the base install.

    with Client("127.0.0.1:50051") as client:
        answer = client.classify(["cat.jpg", "dog.png"], model="pets")
        for result in answer.results:
            print(result.label, result.probability)

A photo is a path, the bytes of a JPEG, PNG or WebP file, or uint8 RGB pixels [height, width, 3]; Crop(pixels) says that
they are cut to the model's size already and are not to be resized. A photo that cannot be used gives an ItemFailure in
its place; a request that fails as a whole raises RequestFailed.
"""

from penult.client.aio import AsyncClient
from penult.client.plain import Client
from penult.client.types import (
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_S,
    Classification,
    ClassifyAnswer,
    Crop,
    DescribeAnswer,
    ItemFailure,
    Photo,
    RequestFailed,
    ScoredClass,
)

__all__ = [
    "DEFAULT_TARGET",
    "DEFAULT_TIMEOUT_S",
    "AsyncClient",
    "Classification",
    "ClassifyAnswer",
    "Client",
    "Crop",
    "DescribeAnswer",
    "ItemFailure",
    "Photo",
    "RequestFailed",
    "ScoredClass",
]
