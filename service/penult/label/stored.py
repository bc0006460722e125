"""Exchange labels with a collection of a running server: store what is labelled, begin with what is stored.

An item's id is the photo's path, as in the label file. The server describes the photos, so the descriptors have the
fingerprint of its model.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from penult.client.credentials import Security
from penult.client.hints import explaining
from penult.client.sync_client import Client
from penult.client.tools.collection_pages import batches, collection_info, pages
from penult.client.types import CollectionInfo, NewItem, RequestFailed
from penult.folders.walk import count

# The metadata field of a new collection, by which a photo is found again after it has been renamed.
SHA256 = "sha256"
_BATCH = 64
_POLL_S = 0.5
# A server polls its models every second, and loads a version within some seconds.
_LOADING_S = 60.0


@dataclass(frozen=True)
class Found:
    """What a collection says of the photos of a folder.

    Attributes:
        labels: The label of each photo that has one, by its path.
        absent: How many labelled items are of photos that are not in the folder. They cannot be shown.
        unclear: How many photos have several labels by their contents, and none by their path; they get none.
    """

    labels: dict[str, str]
    absent: int
    unclear: int

    def lines(self, collection: str) -> list[str]:
        """Return what to print."""
        found = [f"{count(len(self.labels), 'label')} from collection {collection}"]
        if self.absent:
            found.append(f"{count(self.absent, 'labelled item')} not in the folder and cannot be shown")
        if self.unclear:
            found.append(f"{count(self.unclear, 'photo')} left without a label, because copies have several")
        return found


@dataclass(frozen=True)
class Stored:
    """What became of the labels: how many items were added or changed, were equal before, and why others failed."""

    put: int
    equal: int
    failures: tuple[str, ...]

    def line(self, collection: str) -> str:
        """Return what to show."""
        line = f"{count(self.put + self.equal, 'label')} in collection {collection}"
        return line + (f"; {count(len(self.failures), 'label')} not, as {self.failures[0]}" if self.failures else "")


def labels_of(target: str, collection: str, photos: Mapping[str, str]) -> Found:
    """Return the labels that stored items give to photos.

    An item is a photo's if it has its path and not another SHA-256, or its SHA-256. The path counts first.

    Args:
        target: The server, HOST:PORT.
        collection: The collection.
        photos: SHA-256 of each photo, hexadecimal, by its path below the folder.

    Raises:
        RequestFailed: The server does not answer, or has no such collection.
    """
    by_content: dict[str, list[str]] = defaultdict(list)
    for id_, sha256 in photos.items():
        by_content[sha256].append(id_)
    by_path: dict[str, str] = {}
    others: dict[str, set[str]] = defaultdict(set)
    absent = 0
    with _client(target, collection) as client:
        collection_info(client, collection)
        for page in pages(client, collection):
            for item in page:
                if not item.label:
                    continue
                sha256 = str(item.metadata.get(SHA256, ""))
                if item.id in photos and sha256 in ("", photos[item.id]):
                    by_path[item.id] = item.label
                for id_ in by_content.get(sha256, ()):
                    others[id_].add(item.label)
                absent += sha256 not in by_content and not (item.id in photos and not sha256)
    known = {id_: labels for id_, labels in others.items() if id_ not in by_path}
    clear = {id_: next(iter(labels)) for id_, labels in known.items() if len(labels) == 1}
    return Found(by_path | clear, absent, len(known) - len(clear))


def store(
    target: str,
    collection: str,
    folder: Path,
    labels: Mapping[str, str],
    photos: Mapping[str, str],
    model: str = "",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Stored:
    """Put labelled photos into a collection, which is created if it does not exist.

    Items that have the label already are not sent again. Items of photos without a label are left as they are.

    Args:
        target: The server, HOST:PORT.
        collection: The collection.
        folder: The folder that the paths start from.
        labels: The labels by path.
        photos: SHA-256 of each photo, hexadecimal, by path.
        model: The model that describes the photos, "" for the only one served.
        on_progress: Called with how many labels are done, and how many there are.

    Raises:
        RequestFailed: The server does not answer, has no such model, or the collection is of another network.
    """
    failures: list[str] = []
    with _client(target, collection, model) as client:
        known = _known(client, collection)
        has_sha256 = known is None or SHA256 in known.fields
        equal = _equal(client, collection, labels, photos) if known else set()
        items = (
            NewItem(id_, folder / id_, label=label, metadata={SHA256: photos[id_]} if has_sha256 else {})
            for id_, label in labels.items()
            if id_ in photos and id_ not in equal
        )
        done = len(equal)
        on_progress(done, len(labels))
        for batch in batches(items, _BATCH):
            there = [item for item in batch if (folder / item.id).is_file()]
            failures += [f"{item.id} is gone" for item in batch if item not in there]
            fields = {SHA256: "string"} if known is None else {}
            results = client.put_items(collection, there, model=model, fields=fields) if there else ()
            failures += [f"{item.id}: {why.message}" for item, why in zip(there, results, strict=True) if why]
            done += len(batch)
            on_progress(done, len(labels))
    return Stored(done - len(equal) - len(failures), len(equal), tuple(failures))


def wait_for_version(
    target: str,
    model: str,
    version: int,
    timeout_s: float = _LOADING_S,
    on_poll: Callable[[], None] = lambda: None,
) -> None:
    """Wait until a server serves a version of a model.

    Args:
        target: The server, HOST:PORT.
        model: The model's name.
        version: This version, or a later one.
        timeout_s: Seconds to wait at most.
        on_poll: Called before each request; what it raises ends the waiting.

    Raises:
        RequestFailed: The server does not answer, or does not serve the version in time.
    """
    deadline = time.monotonic() + timeout_s
    with _client(target, "", model) as client:
        while True:
            on_poll()
            try:
                if client.get_model(model).version.version >= version:
                    return
            except RequestFailed as error:
                if error.code != "NOT_FOUND":
                    raise
            if time.monotonic() > deadline:
                line = f"{target} does not serve {model} version {version}; serve its folder, then publish again"
                raise RequestFailed("NOT_FOUND", "MODEL_UNKNOWN", line)
            time.sleep(_POLL_S)


def _known(client: Client, collection: str) -> CollectionInfo | None:
    return next((each for each in client.list_collections() if each.name == collection), None)


def _equal(client: Client, collection: str, labels: Mapping[str, str], photos: Mapping[str, str]) -> set[str]:
    """Return the ids whose items have the label, and no other SHA-256."""
    return {
        item.id
        for page in pages(client, collection)
        for item in page
        if item.id in photos
        and labels.get(item.id) == item.label
        and item.metadata.get(SHA256, photos[item.id]) == photos[item.id]
    }


@contextmanager
def _client(target: str, collection: str, model: str = "") -> Iterator[Client]:
    """Open a client with the security of the environment; failed requests name what was probably meant."""
    security = Security.from_environment()
    with explaining(target, security, model, collection), Client(target, security=security) as client:
        yield client
