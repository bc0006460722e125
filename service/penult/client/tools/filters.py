"""--filter: from FIELD=VALUE to conditions, and why nothing was found where nothing was."""

import argparse
from collections.abc import Sequence
from typing import Any

from penult.client.sync_client import Client
from penult.client.tools.collection_pages import pages, told_of
from penult.client.types import CollectionInfo, ItemFailure, Photo, RequestFailed
from penult.nearest import did_you_mean

_SIGNS = (">=", "<=", "=")
# So many stored items are looked through for a name like the one that no item has.
_MAX_LOOKED_THROUGH = 20_000


def add_filter_argument(parser: argparse.ArgumentParser) -> None:
    """Add --filter."""
    parser.add_argument(
        "--filter", action="append", default=[], type=_condition, metavar="FIELD=VALUE",
        help="only items like this: label=cat, price>=10, price<=20; all must hold, of one field's values any",
    )  # fmt: skip


def _condition(text: str) -> str:
    if not any(sign in text for sign in _SIGNS):
        raise argparse.ArgumentTypeError(f"{text}: write FIELD=VALUE, FIELD>=N or FIELD<=N")
    return text


def read_filter(told: CollectionInfo, texts: Sequence[str]) -> dict[str, Any]:
    """Return conditions as the client takes them; values by the collection's types. Raises RequestFailed."""
    types = {"label": "string"} | dict(told.fields)
    where: dict[str, Any] = {}
    for text in texts:
        sign = next(sign for sign in _SIGNS if sign in text)
        name, _, value = text.partition(sign)
        if name not in types:
            known = ", ".join(types)
            line = f"--filter {text}: {told.name} has no field {name!r}; there is {known}{did_you_mean(name, types)}"
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


class Asked:
    """What was looked for, to find out why a photo has no neighbour: by asking again with less."""

    def __init__(self, client: Client, collection: str, where: dict[str, Any], max_distance: float) -> None:
        """Ask nothing yet; the conditions are asked about once, whichever photo it is."""
        self._client, self._name, self._where, self._max_distance = client, collection, where, max_distance
        self._of_the_filter: str | None = None

    def why_nothing(self, photo: Photo, model: str, version: int) -> str:
        """Return why nothing was found for a photo. Raises RequestFailed."""
        if not told_of(self._client, self._name).items:
            return f"{self._name} is empty"
        nearest = self._nearest(photo, self._where, model, version)
        if nearest is not None:
            return f"nothing within {self._max_distance:g}: the nearest is at {nearest:.3f}"
        if self._of_the_filter is None:
            self._of_the_filter = self._why_no_match(photo, model, version)
        return self._of_the_filter

    def _nearest(self, photo: Photo, where: dict[str, Any], model: str, version: int) -> float | None:
        """Return the distance of the nearest item, however far; None if there is none."""
        answer = self._client.lookup([photo], self._name, k=1, where=where, model=model, version=version)
        (found,) = answer.results
        return None if isinstance(found, ItemFailure) or not found else 1 - found[0].similarity

    def _why_no_match(self, photo: Photo, model: str, version: int) -> str:
        for field, wanted in self._where.items():
            if self._nearest(photo, {field: wanted}, model, version) is None:
                return self._no_item_has(field, wanted)
        return "no stored item meets every --filter"

    def _no_item_has(self, field: str, wanted: Any) -> str:
        if isinstance(wanted, tuple):
            low, high = (("" if bound is None else f"{bound:g}") for bound in wanted)
            return f"no stored item has {field} within {low}…{high}"
        said = " or ".join(repr(value) for value in wanted)
        texts = [value for value in wanted if isinstance(value, str)]
        guess = did_you_mean(texts[0], self._values(field)) if texts else ""
        return f"no stored item has {field} {said}{guess}"

    def _values(self, field: str) -> set[str]:
        """Return the texts that stored items have there, of the first many items."""
        found: set[str] = set()
        seen = 0
        for page in pages(self._client, self._name):
            found |= {str(item.label if field == "label" else item.metadata.get(field, "")) for item in page}
            seen += len(page)
            if seen >= _MAX_LOOKED_THROUGH:
                break
        return found - {""}
