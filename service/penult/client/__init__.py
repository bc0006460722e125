"""A typed client of penult.v1, in the base install. Client is synchronous, AsyncClient is for asyncio.

```
    with Client("127.0.0.1:50051") as client:
        answer = client.classify(["cat.jpg", "dog.png"], model="pets")
        for result in answer.results:
            print(result.label, result.probability)

    for each in client.classify_many("holiday", progress=True):  # a folder, in batches
        print(each.photo, each.result)
```

An image is a path, the bytes of an image file, or uint8 RGB pixels [height, width, 3]. Crop(pixels) marks
pixels that already have the model's size. An image that cannot be used gives an ItemFailure in its place. A request
that fails as a whole raises RequestFailed.
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
    ClassMap,
    CollectionInfo,
    Crop,
    DescribeAnswer,
    ItemFailure,
    Judged,
    LookupAnswer,
    MapsWanted,
    Neighbour,
    Neighbours,
    NewItem,
    Photo,
    PhotoAnswer,
    RequestFailed,
    ScoredClass,
    StoredItem,
    Truth,
)

__all__ = [
    "DEFAULT_TARGET",
    "DEFAULT_TIMEOUT_S",
    "AsyncClient",
    "ClassMap",
    "Classification",
    "ClassifyAnswer",
    "Client",
    "CollectionInfo",
    "Crop",
    "DescribeAnswer",
    "ItemFailure",
    "Judged",
    "LookupAnswer",
    "MapsWanted",
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
    "Truth",
    "photos_in",
]
