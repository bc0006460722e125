"""The k-nearest vote: label an image by its nearest items (Cover and Hart 1967).

Each labelled neighbour votes with its similarity, as Dudani (1976) weights by distance. So a far neighbour does not
outvote a near one, and a negative similarity does not vote.
"""

from collections.abc import Sequence

from penult.lookup.types import Hit


def vote(hits: Sequence[Hit]) -> list[tuple[str, float]]:
    """Return labels with their shares of the votes, summing to 1, the largest first; empty without votes."""
    votes: dict[str, float] = {}
    for hit in hits:  # the nearest first, so that among equals the label of the nearest wins
        if hit.label and hit.similarity > 0:
            votes[hit.label] = votes.get(hit.label, 0.0) + hit.similarity
    total = sum(votes.values())
    return sorted(((label, weight / total) for label, weight in votes.items()), key=lambda pair: -pair[1])
