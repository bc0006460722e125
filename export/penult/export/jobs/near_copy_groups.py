"""Group near-copies for `--group-by near-duplicates`: by the network that a run starts from, or as a model recorded it.

A fine-tuned network describes photos differently. So a bundle records its groups, and later versions split as it did.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from penult.bundle.reader import Bundle, read_file
from penult.export.config.photos import BY_LIKENESS
from penult.export.data.dataset import Splits
from penult.export.data.grouping import NearCopies
from penult.export.data.splitting import Photo
from penult.export.evaluation.near_copies import find_pairs, group_ids
from penult.export.jobs.frozen_descriptors import FrozenNetwork, of_model

_METRICS, _RECORD = "metrics.json", "near_copy_groups"
# Hexadecimal digits that identify a photo in the record.
_DIGITS = 16


def near_copies(group_by: str | None, network: Callable[[], FrozenNetwork]) -> NearCopies | None:
    """Return the function that load_splits() groups near-copies with; None if the run groups otherwise.

    Args:
        group_by: How the run groups photos, one of config.photos.GROUPINGS.
        network: Returns the network that describes the photos, called once they are read.
    """

    def groups(photos: Sequence[Photo]) -> list[str]:
        pairs = find_pairs(photos, network().describe(photos))
        return group_names(photos, [int(group) for group in group_ids(len(photos), pairs)])

    return groups if group_by == BY_LIKENESS else None


def group_names(photos: Sequence[Photo], groups: Sequence[int]) -> list[str]:
    """Return a name for the group of each photo, by contents alone; "" for a group of one."""
    members: dict[int, list[str]] = {}
    for photo, group in zip(photos, groups, strict=True):
        members.setdefault(group, []).append(photo.sha256)
    return [min(members[group]) if len(members[group]) > 1 else "" for group in groups]


def near_copies_as_trained(group_by: str, model: Path, bundle: Bundle) -> NearCopies | None:
    """Return how load_splits() groups near-copies for a new version of a model; None if it does not.

    Photos that the bundle does not name are alone. If it records no groups, its network finds them.
    """
    found: Any = None
    if group_by == BY_LIKENESS and _METRICS in bundle.manifest.files:
        found = json.loads(read_file(model / str(bundle.version), bundle.manifest, _METRICS)).get(_RECORD)
    if not isinstance(found, list):
        return near_copies(group_by, lambda: of_model(model, bundle.version))
    return as_recorded(found)


def as_recorded(record: Sequence[Sequence[str]]) -> NearCopies:
    """Return the function that groups photos as recorded_groups() lists them; the names of groups are those of then."""
    numbers = {photo: number for number, group in enumerate(record) for photo in group}

    def groups(photos: Sequence[Photo]) -> list[str]:
        return group_names(photos, [numbers.get(photo.sha256[:_DIGITS], -1 - row) for row, photo in enumerate(photos)])

    return groups


def recorded_groups(splits: Splits, group_by: object) -> dict[str, list[list[str]]]:
    """Return the entry of metrics.json that near_copies_as_trained() reads; empty if near-copies are not grouped."""
    if group_by != BY_LIKENESS:
        return {}
    members: dict[str, set[str]] = {}
    for photo in (*splits.train, *splits.val, *splits.certify, *splits.test):
        if photo.group:
            members.setdefault(photo.group, set()).add(photo.sha256[:_DIGITS])
    return {_RECORD: sorted(sorted(group) for group in members.values())}
