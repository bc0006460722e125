"""Measure class maps: CPU time per image asked and not asked, and the largest difference between sums and scores.

    python bench/class_maps.py NETWORK[=WEIGHTS] …

All variants take turns in one process, one image at a time. The median of the ratios of each turn is printed.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from penult.bundle.class_map import largest_error
from penult.bundle.manifest import DENSE, Manifest
from penult.bundle.map_support import MapSupport
from penult.export.config.train import TrainSettings
from penult.export.networks.architectures import get
from penult.export.networks.network import build
from penult.export.onnx.class_maps import find
from penult.export.onnx.convert import to_onnx
from penult.service.models.class_maps import ClassMapper
from penult.service.runtime.session import Session

_TURNS, _MOST_S = 150, 4.0


def main() -> None:
    """Print a line for each network."""
    for given in sys.argv[1:]:
        name, _, weights = given.partition("=")
        measure(name, weights or "none")


def measure(name: str, weights: str) -> None:
    """Print what class maps of a network cost, and how exact they are; or why it has none."""
    settings = TrainSettings(data=Path(), out=Path(), arch=name, weights=weights, freeze=0)
    net, spec = build(get(name), settings, 10), get(name).preprocess
    training = {"settings": settings.as_json()}
    draft = Manifest(name, tuple("abcdefghij"), spec, net.served_length, DENSE, {}, training=training)
    data = to_onnx(net, draft)
    without = onnx.load_from_string(data)
    if len(without.graph.output) < 3:
        print(f"{name}: none, {find(data, draft, ()).support.reasons[DENSE]}")
        return
    del without.graph.output[2]
    images = list(np.random.default_rng(0).integers(0, 256, (8, spec.crop, spec.crop, 3), dtype=np.uint8))
    plain = Session(without.SerializeToString(), draft, "cpu")
    served = Session(data, draft, "cpu")
    logits, descriptors, features = served.run_features(images)
    shape = features.shape[1:]
    head = find(data, draft, shape).head
    assert head is not None
    off = largest_error(head, features, descriptors, logits, 1)
    with_maps = Session(data, replace(draft, class_maps=MapSupport((DENSE,), {}, shape)), "cpu")
    mapper = ClassMapper({DENSE: head}, 1)

    def asked(image: np.ndarray) -> None:
        logits, descriptors, features = with_maps.run_features([image])
        best = mapper.best(DENSE, logits[0], descriptors[0], 1)
        mapper.heads[DENSE].maps(mapper.rows(features)[:, 0], descriptors[0], best)

    variants = (lambda image: plain.run_images([image]), lambda image: served.run_images([image]), asked)
    seconds = []
    for turn in range(_TURNS):
        row = []
        for act in variants:
            started = time.process_time()
            act(images[turn % len(images)])
            row.append(time.process_time() - started)
        seconds.append(row)
        if sum(map(sum, seconds)) > _MOST_S:
            break
    rows = np.array(seconds[2:])
    ratios = np.median(rows[:, 1:] / rows[:, :1], axis=0)
    print(
        f"{name}: {1000 * np.median(rows[:, 0]):.2f} ms; not asked {ratios[0]:.3f}, asked {ratios[1]:.3f}; "
        f"sums within {off:.0e} of the largest logit"
    )


if __name__ == "__main__":
    main()
