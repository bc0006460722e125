"""The k-nearest vote: the label of a photo is that of the items it lies next to (Cover and Hart 1967).

Each labelled neighbour votes with its similarity, as Dudani's weighting (1976) does with distances, so that a far one
does not outvote a near one; what points away does not vote.
"""

from collections.abc import Sequence

from penult.lookup.types import Hit


def vote(hits: Sequence[Hit]) -> list[tuple[str, float]]:
    """Return labels with their shares of the votes, summing to 1, the largest first; none where nobody votes."""
    votes: dict[str, float] = {}
    for hit in hits:  # the nearest first, so that among equals the label of the nearest wins
        if hit.label and hit.similarity > 0:
            votes[hit.label] = votes.get(hit.label, 0.0) + hit.similarity
    total = sum(votes.values())
    return sorted(((label, weight / total) for label, weight in votes.items()), key=lambda pair: -pair[1])
