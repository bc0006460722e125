"""The manifest's entry on class maps: which scorers have exact maps, and why others have none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# The graph's output that maps are computed from. It is fetched only for requests that ask for maps.
FEATURES = "features"
OLDER = "the bundle was made before class maps; train or import the model again"
_VIEWS = (1, 2, 4, 8)
_MAX_REASON = 300
_MAX_SIDE = 1 << 20


@dataclass(frozen=True)
class MapSupport:
    """What a bundle says of its class maps.

    Attributes:
        scorers: The scorers whose scores are exactly the sum of a map.
        reasons: Why each other scorer has no exact map.
        shape: Channels, height and width of FEATURES for one view of a photo; empty if the graph has no such output.
        views: How many views of a photo the network reads. FEATURES has their rows one view after the other.
    """

    scorers: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    views: int = 1

    def as_json(self) -> dict[str, Any]:
        """Return the entry of manifest.json."""
        return {
            "scorers": list(self.scorers),
            "reasons": dict(self.reasons),
            "shape": list(self.shape),
            "views": self.views,
        }

    @classmethod
    def from_json(cls, value: Any) -> "MapSupport":
        """Read the entry of manifest.json; raise TypeError, KeyError or ValueError if it cannot be right."""
        scorers, reasons, shape, views = (value[name] for name in ("scorers", "reasons", "shape", "views"))
        if type(scorers) is not list or type(reasons) is not dict or type(shape) is not list:
            raise TypeError("class_maps has a list of scorers, reasons by scorer, and a list of sizes")
        if not all(isinstance(text, str) for text in (*scorers, *reasons.values())):
            raise TypeError("scorers and reasons of class_maps must be text")
        if not all(type(size) is int and 0 < size <= _MAX_SIDE for size in shape) or len(shape) not in (0, 3):
            raise ValueError("shape of class_maps must be channels, height and width, or empty")
        if type(views) is not int or views not in _VIEWS:
            raise ValueError("views of class_maps must be 1, 2, 4 or 8")
        return cls(
            tuple(scorers),
            {name: " ".join(why.split())[:_MAX_REASON] for name, why in reasons.items()},
            tuple(shape),
            views,
        )


def check(support: MapSupport | None, scorers: Sequence[str], descriptor_length: int, has_dense_head: bool) -> None:
    """Raise ValueError if the entry does not fit the scorers and files of a bundle."""
    if support is None:
        return
    if any(name not in scorers for name in support.scorers) or len(set(support.scorers)) != len(support.scorers):
        raise ValueError("class_maps names a scorer that this bundle does not have")
    if support.scorers and not support.shape:
        raise ValueError("class_maps has scorers, but no shape of the feature map")
    if ("dense" in support.scorers) != has_dense_head:
        raise ValueError("the dense head must be listed in files if class_maps names the dense scorer, and only then")
    if "svm" in support.scorers and support.shape[0] != descriptor_length:
        raise ValueError("the feature map must have as many channels as the descriptor has numbers")


def tolerance(is_fp16: bool) -> float:
    """Return by how much sums of maps may differ from scores, as class_map.largest_error() measures it.

    Float16 rounds to a thousandth.
    """
    return 2e-3 if is_fp16 else 1e-4


def why_none(support: MapSupport | None, scorer: str) -> str:
    """Return why a scorer has no exact class maps, "" if it has."""
    if support is None:
        return OLDER
    if scorer in support.scorers:
        return ""
    return support.reasons.get(scorer, f"the scores of {scorer} are no sum over places")
