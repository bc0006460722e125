"""Conditions on items, from FIELD=VALUE, and the reason why a lookup found nothing."""

from collections.abc import Sequence
from typing import Any

from penult.client.sync_client import Client
from penult.client.tools.collection_pages import collection_info, pages
from penult.client.types import CollectionInfo, ItemFailure, Photo, RequestFailed
from penult.nearest import did_you_mean

SIGNS = (">=", "<=", "=")
# Of at most so many stored items, the values are compared with a value that no item has.
_MAX_COMPARED = 20_000


def read_filter(collection: CollectionInfo, texts: Sequence[str]) -> dict[str, Any]:
    """Return conditions for Client.lookup(), with values of the collection's types. Raises RequestFailed."""
    types = {"label": "string"} | dict(collection.fields)
    where: dict[str, Any] = {}
    for text in texts:
        sign = next(sign for sign in SIGNS if sign in text)
        name, _, value = text.partition(sign)
        if name not in types:
            known = ", ".join(types)
            line = (
                f"--filter {text}: {collection.name} has no field {name!r}; there is {known}{did_you_mean(name, types)}"
            )
            raise RequestFailed("INVALID_ARGUMENT", "FILTER", line)
        if sign == "=":
            where.setdefault(name, []).append(_typed(value, types[name], text))
        else:
            low, high = where.get(name, (None, None))
            bound = float(_typed(value, "number", text))
            where[name] = (bound, high) if sign == ">=" else (low, bound)
    return where


def _typed(value: str, kind: str, text: str) -> Any:
    try:
        if kind == "boolean":
            return {"true": True, "false": False}[value.lower()]
        return float(value) if kind == "number" else value
    except (KeyError, ValueError):
        raise RequestFailed("INVALID_ARGUMENT", "FILTER", f"--filter {text}: {value!r} is no {kind}") from None


class EmptyLookup:
    """Finds out why a lookup found nothing, by repeating it with fewer conditions."""

    def __init__(self, client: Client, collection: str, where: dict[str, Any], max_distance: float) -> None:
        """Send no request yet; the conditions are tried once, for the first image."""
        self._client = client
        self._name = collection
        self._where = where
        self._max_distance = max_distance
        self._filter_reason: str | None = None

    def reason(self, photo: Photo, model: str, version: int) -> str:
        """Return why nothing was found for an image. Raises RequestFailed."""
        if not collection_info(self._client, self._name).items:
            return f"{self._name} is empty"
        nearest = self._nearest(photo, self._where, model, version)
        if nearest is not None:
            return f"nothing within {self._max_distance:g}: the nearest is at {nearest:.3f}"
        if self._filter_reason is None:
            self._filter_reason = self._unmatched(photo, model, version)
        return self._filter_reason

    def _nearest(self, photo: Photo, where: dict[str, Any], model: str, version: int) -> float | None:
        """Return the distance of the nearest item, however far; None if there is none."""
        answer = self._client.lookup([photo], self._name, k=1, where=where, model=model, version=version)
        (found,) = answer.results
        return None if isinstance(found, ItemFailure) or not found else 1 - found[0].similarity

    def _unmatched(self, photo: Photo, model: str, version: int) -> str:
        for field, wanted in self._where.items():
            if self._nearest(photo, {field: wanted}, model, version) is None:
                return self._no_item_has(field, wanted)
        return "no stored item meets every --filter"

    def _no_item_has(self, field: str, wanted: Any) -> str:
        if isinstance(wanted, tuple):
            low, high = (("" if bound is None else f"{bound:g}") for bound in wanted)
            return f"no stored item has {field} within {low}…{high}"
        values = " or ".join(repr(value) for value in wanted)
        texts = [value for value in wanted if isinstance(value, str)]
        guess = did_you_mean(texts[0], self._values(field)) if texts else ""
        return f"no stored item has {field} {values}{guess}"

    def _values(self, field: str) -> set[str]:
        """Return the texts of a field, of the first items."""
        found: set[str] = set()
        seen = 0
        for page in pages(self._client, self._name):
            found |= {str(item.label if field == "label" else item.metadata.get(field, "")) for item in page}
            seen += len(page)
            if seen >= _MAX_COMPARED:
                break
        return found - {""}
