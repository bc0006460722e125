"""A typed client of penult.v1: Client for plain code, AsyncClient for asyncio. Needs only the base install.

    with Client("127.0.0.1:50051") as client:
        answer = client.classify(["cat.jpg", "dog.png"], model="pets")
        for result in answer.results:
            print(result.label, result.probability)

    for each in client.classify_many("holiday", progress=True):  # a folder, batch by batch
        print(each.photo, each.result)

A photo is a path, the bytes of a JPEG, PNG or WebP file, or uint8 RGB pixels [height, width, 3]; Crop(pixels) says that
they are cut to the model's size already and are not to be resized. A photo that cannot be used gives an ItemFailure in
its place; a request that fails as a whole raises RequestFailed.
"""

from penult.client.async_client import AsyncClient
from penult.client.batch_calls import photos_in
from penult.client.credentials import Security, SecurityError
from penult.client.sync_client import Client
from penult.client.types import (
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_S,
    Classification,
    ClassifyAnswer,
    CollectionInfo,
    Crop,
    DescribeAnswer,
    ItemFailure,
    LookupAnswer,
    Neighbour,
    Neighbours,
    NewItem,
    Photo,
    PhotoAnswer,
    RequestFailed,
    ScoredClass,
    StoredItem,
)

__all__ = [
    "DEFAULT_TARGET",
    "DEFAULT_TIMEOUT_S",
    "AsyncClient",
    "Classification",
    "ClassifyAnswer",
    "Client",
    "CollectionInfo",
    "Crop",
    "DescribeAnswer",
    "ItemFailure",
    "LookupAnswer",
    "Neighbour",
    "Neighbours",
    "NewItem",
    "Photo",
    "PhotoAnswer",
    "RequestFailed",
    "ScoredClass",
    "Security",
    "SecurityError",
    "StoredItem",
    "photos_in",
]
