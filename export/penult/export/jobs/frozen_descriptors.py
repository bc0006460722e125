"""Describe photos with a network as it is: one with given weights, or the network of a published model.

Descriptors are cached on disk by photo and network, so a second run computes those of new photos only. PyTorch is
needed to export a network with given weights (penult.export.jobs.export_frozen), and not for a published model.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from penult.bundle.preprocess import SRGB, Preprocess
from penult.bundle.reader import read_bundle
from penult.bundle.scores import Floats
from penult.console import say
from penult.export.config import known_networks
from penult.export.data.loader import Cache, PhotoReader
from penult.export.data.row_cache import RowCache
from penult.export.data.splitting import Photo
from penult.export.jobs.export_frozen import draft, export
from penult.export.networks import weights_file
from penult.export.onnx import runtime

_BATCH = 16
# The cache is written after so many new photos, so that an interrupted run loses little.
_SAVE_EVERY = 8192


@dataclass(frozen=True)
class FrozenNetwork:
    """A network that describes photos.

    Attributes:
        name: What users know it by: "squeezenet1_1 with FILE", or "pets version 3".
        preprocess: How photos become its input.
        length: Numbers per descriptor.
        identity: Changes with everything that the descriptors depend on.
        load: Returns the ONNX model; called only if a photo is not in the cache.
    """

    name: str
    preprocess: Preprocess
    length: int
    identity: str
    load: Callable[[], runtime.ExportedModel]

    def describe(self, photos: Sequence[Photo], what: str = "describing photos") -> Floats:
        """Return the raw descriptors of photos, float32 [N, length], in their order; `what` names the progress bar.

        Copies of a photo are described once. Beside the result, memory holds a few batches of crops.

        Raises:
            DiskError: A photo can no longer be read.
        """
        cache = RowCache("descriptors", f"{runtime.VERSION} {self.identity}", self.length)
        places: dict[str, int] = {}
        first = [places.setdefault(photo.sha256, row) for row, photo in enumerate(photos)]
        rows, new = np.empty((len(photos), self.length), np.float32), []
        for sha256, row in places.items():
            known = cache.get(sha256)
            if known is None:
                new.append(sha256)
            else:
                rows[row] = known
        if new:
            self._fill(rows, [photos[places[sha256]] for sha256 in new], places, cache, what)
        for row, same in enumerate(first):
            if same != row:
                rows[row] = rows[same]
        return rows

    def _fill(self, rows: Floats, new: Sequence[Photo], places: dict[str, int], cache: RowCache, what: str) -> None:
        """Compute the rows of new photos, and write the cache now and then."""
        exported = self.load()
        reader = PhotoReader(self.preprocess, Cache(0), _BATCH)
        missing = {photo.sha256 for photo in new}

        def keep() -> None:
            cache.keep({sha256: row for sha256, row in places.items() if sha256 not in missing}, rows)

        waiting, unsaved = iter(new), 0
        for pixels, _ in reader.crops(new, what):
            batch = [photo.sha256 for photo in islice(waiting, len(pixels))]
            rows[[places[sha256] for sha256 in batch]] = exported.run(pixels)[1]
            missing.difference_update(batch)
            unsaved += len(batch)
            if unsaved >= _SAVE_EVERY and missing:
                keep()
                unsaved = 0
        keep()


def of_weights(arch: str, weights: str, preprocess: Preprocess | None = None) -> FrozenNetwork:
    """Return a network with given weights, as `penult train --arch --weights` takes them.

    Args:
        arch: The network's name.
        weights: A state-dict file, imagenet, or none for a random start.
        preprocess: How photos become its input; None: as the network does it by default.

    Raises:
        SettingsError: There is no such network, or the weights do not fit it.
    """
    network = known_networks.get(arch)
    weights_file.check(weights, network)
    spec = preprocess or replace(network.preprocess, colors=SRGB)
    is_file = weights != "none" and weights not in weights_file.DOWNLOADS
    content = hashlib.sha256(Path(weights).read_bytes()).hexdigest() if is_file else weights
    identity = json.dumps([arch, content, spec.as_json()], sort_keys=True)

    def load() -> runtime.ExportedModel:
        say(f"exporting {arch} to ONNX")
        return runtime.ExportedModel(export(arch, weights, spec), draft(arch, spec))

    name = (
        f"{arch} with {Path(weights).name if is_file else weights} weights" if weights != "none" else f"random {arch}"
    )
    return FrozenNetwork(name, spec, network.descriptor_length, identity, load)


def of_model(model: Path, version: int | None = None) -> FrozenNetwork:
    """Return the network of a published model, a folder like models/NAME.

    Args:
        model: The model's folder.
        version: The version; None: the newest.

    Raises:
        BundleError: There is no such version, or it is damaged.
    """
    bundle = read_bundle(model, version)
    manifest, onnx = bundle.manifest, bundle.onnx
    return FrozenNetwork(
        f"{bundle.name} version {bundle.version}",
        manifest.preprocess,
        manifest.descriptor_length,
        manifest.fingerprint,
        lambda: runtime.ExportedModel(onnx, manifest),
    )
