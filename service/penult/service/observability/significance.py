"""Whether a share differs from the usual one by more than chance explains: the rule behind the status page's arrows."""

import math
from functools import cache
from statistics import NormalDist

# An arrow is wrong in at most one look of a thousand, however many rows a look has.
_WRONG_LOOKS = 0.001
# Below this many answers the normal approximation means nothing, and neither would an arrow.
MIN_ANSWERS = 20
# Bundles of before do not say how many photos validated them: assumed to be few, so that an arrow needs a clear change.
UNKNOWN_PHOTOS = 30

MORE, LESS = "more", "less"


def trend(share: float | None, answers: float, usual: float | None, photos: float | None, rows: int) -> str | None:
    """Return MORE or LESS if `share` of `answers` is further from `usual` of `photos` than chance explains, else None.

    Both are shares, or means of values between 0 and 1, whose variance is never above that of a share. `photos` is the
    number of validation photos behind `usual`, None if that is unknown. `rows` is how many such comparisons stand side
    by side: the more there are, the larger the difference must be (Bonferroni). The test is that of two proportions,
    with a pooled variance and a correction for continuity.
    """
    if share is None or usual is None or answers < MIN_ANSWERS:
        return None
    photos = photos or UNKNOWN_PHOTOS
    pooled = min(max((share * answers + usual * photos) / (answers + photos), 0.0), 1.0)
    spread = 1 / answers + 1 / photos
    far = abs(share - usual) - spread / 2
    if far <= _limit(rows) * math.sqrt(pooled * (1 - pooled) * spread):
        return None
    return MORE if share > usual else LESS


@cache
def _limit(rows: int) -> float:
    """Return how many standard errors a difference needs among so many."""
    return -NormalDist().inv_cdf(_WRONG_LOOKS / (2 * max(rows, 1)))
