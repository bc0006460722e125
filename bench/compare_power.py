"""How often `penult compare --fail-if-worse` stops a version, by the number of photos and the points that it loses.

Each of 2,000 pairs of versions draws the photos that only one of them gets right, 10 % of all, at random.
"""

from functools import cache

import numpy as np

from penult.export.evaluation.paired import SIGNIFICANCE, mcnemar

_APART, _PAIRS = 0.10, 2000


def main() -> None:
    """Print a row per number of photos: stopped at 0, 2 and 5 points, any verdict on equals, in per cent."""
    p_value, random = cache(mcnemar), np.random.default_rng(0)
    for photos in (100, 200, 431, 1000, 2000):
        row = []
        for loss in (0, 0.02, 0.05):
            shares = [(_APART + loss) / 2, (_APART - loss) / 2, 1 - _APART]
            drawn = random.multinomial(photos, shares, size=_PAIRS)[:, :2].tolist()
            verdicts = [(p_value(worse, better) < SIGNIFICANCE, worse > better) for worse, better in drawn]
            row.append(np.mean([significant and is_worse for significant, is_worse in verdicts]))
            if not loss:
                either = np.mean([significant for significant, _ in verdicts])
        print(photos, *(f"{100 * share:.1f}" for share in (*row, either)))


if __name__ == "__main__":
    main()
