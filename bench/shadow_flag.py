"""How often a shadow is called worse, and after how many verdicts, by simulated pairs of versions.

The errors of both versions are correlated: a photo is hard for both. Each pair draws two normal numbers for each photo,
with a correlation of 0 to 0.95, and a version is right if its number is below the quantile of its accuracy. The test is
the server's own, after each verdict, and for comparison McNemar's exact test, which holds for one look only.
"""

import argparse
from collections.abc import Iterator
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from penult.export.evaluation.paired import SIGNIFICANCE, mcnemar
from penult.service.observability.sequential import LIMIT, evidence_of_worse

_SOON, _LONG = 500, 5000
_CORRELATIONS = (0.0, 0.5, 0.8, 0.9, 0.95)


def draw(
    random: np.random.Generator, accuracies: tuple[float, float], correlation: float, photos: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which photos primary and shadow get right, bool [photos] each."""
    own = random.standard_normal((2, photos))
    ease = own[0], correlation * own[0] + np.sqrt(1 - correlation**2) * own[1]
    primary, shadow = (each < NormalDist().inv_cdf(accuracy) for each, accuracy in zip(ease, accuracies, strict=True))
    return primary, shadow


def counts(primary: NDArray[np.bool_], shadow: NDArray[np.bool_]) -> Iterator[tuple[int, int, int]]:
    """Yield the verdicts so far and how often only one version was right, after each photo that changes that."""
    only_primary = only_shadow = 0
    for photo in np.flatnonzero(primary != shadow).tolist():
        only_primary += int(primary[photo])
        only_shadow += int(shadow[photo])
        yield photo + 1, only_primary, only_shadow


def main() -> None:
    """Print a row for each pair of accuracies and each correlation, in per cent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1000, help="pairs of versions in each row")
    pairs, random = parser.parse_args().pairs, np.random.default_rng(0)
    evidence = cache(evidence_of_worse)
    p_value = cache(mcnemar)
    print("primary shadow correlation apart | flagged by 500, by 5000, median verdicts | McNemar at any look, by 5000")
    for accuracies in ((0.9, 0.9), (0.8, 0.8), (0.9, 0.85), (0.8, 0.75), (0.97, 0.92), (0.9, 0.88), (0.9, 0.95)):
        for correlation in _CORRELATIONS:
            at, naive, apart = [], 0, 0.0
            for _ in range(pairs):
                drawn = draw(random, accuracies, correlation, _LONG)
                apart += float(np.mean(drawn[0] != drawn[1])) / pairs
                seen = list(counts(*drawn))
                at.append(next((photo for photo, one, other in seen if evidence(one, other) >= LIMIT), np.inf))
                if accuracies[0] == accuracies[1]:
                    naive += any(one > other and p_value(one, other) < SIGNIFICANCE for _, one, other in seen)
            soon, late = (100 * np.mean(np.array(at) <= most) for most in (_SOON, _LONG))
            flagged = [photo for photo in at if photo <= _LONG]
            median = f"{np.median(flagged):.0f}" if len(flagged) > pairs / 2 else "-"
            row = f"{accuracies[0]:.2f} {accuracies[1]:.2f} {correlation:.2f} {100 * apart:.1f}"
            print(f"{row} | {soon:.1f} {late:.1f} {median} | {100 * naive / pairs:.1f}", flush=True)


if __name__ == "__main__":
    main()
