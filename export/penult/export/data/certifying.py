"""Set validation photos aside that choose nothing and certify thresholds, one of each group."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from penult.export.data.dataset import Splits
from penult.export.data.splitting import Photo, hold_out, units_of

_SHARE = 0.5
_KEPT_PER_CLASS = 1


def set_aside(splits: Splits, seed: int) -> Splits:
    """Move half of the validation photos to `certify`, by class and seed; groups stay whole.

    The other half chooses the epoch, the temperature and the default scorer. Photos that decided any of these would
    look too easy for a certificate.
    """
    val, certify = hold_out(splits.val, _SHARE, f"{seed} certify", _KEPT_PER_CLASS)
    note = f"{len(certify)} of {len(splits.val)} validation photos choose nothing, and certify --max-error"
    return replace(splits, val=tuple(val), certify=tuple(certify), notes=(*splits.notes, note))


def independent_rows(photos: Sequence[Photo], seen: Sequence[Photo], seed: int) -> NDArray[np.intp]:
    """Return the rows of photos that count: one of each group, drawn by seed.

    Photos of a group, and identical files, are no independent evidence. None counts if its group has `seen` photos.
    """
    units = units_of((*seen, *photos))
    taken = set(units[: len(seen)])
    rows = []
    for row in np.random.default_rng([seed, 7]).permutation(len(photos)):
        unit = units[len(seen) + row]
        if unit not in taken:
            taken.add(unit)
            rows.append(row)
    return np.sort(np.array(rows, dtype=np.intp))
