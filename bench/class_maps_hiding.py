"""Class maps: hiding the places that they point to costs more score than hiding other places.

    python bench/class_maps_hiding.py MODEL PHOTOS [--draws 10] [--seed 0] [--sheet FILE]

MODEL is models/NAME with exact class maps, PHOTOS a folder of class folders that the model was not trained on. Of each
photo, the fifth of the places that adds most to the score of its answer is hidden under the photo's mean colour. The
fall of the score is compared with hiding

- random: as many places at random; the mean of --draws draws, and the first draw alone;
- moved: the same places moved together, around the edges, by a random distance: the same shape elsewhere;
- lowest: the fifth that adds least.

--sheet draws the maps of ten photos.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from penult.bundle.class_map import ClassMap, LinearHead, area_of, by_views
from penult.bundle.manifest import DENSE
from penult.bundle.overlay import draw_map
from penult.bundle.preprocess import Pixels, crop_encoded, decode
from penult.bundle.reader import Bundle, read_bundle
from penult.bundle.scores import Floats, wilson
from penult.console import progress
from penult.export.onnx.runtime import ExportedModel
from penult.service.models.svm.scorer import load_linear

HIDDEN = 0.2
_SHEET, _ACROSS = 10, 5


def head_of(bundle: Bundle, scorer: str) -> LinearHead:
    """Return the linear head of a scorer with exact maps."""
    manifest = bundle.manifest
    if scorer == DENSE:
        head = bundle.dense_head
    else:
        head = load_linear(bundle.svm, manifest.descriptor_length, len(manifest.classes))
    assert head is not None, f"{scorer} has no exact maps"
    return head


def hidden(crop: Pixels, places: NDArray[np.bool_]) -> Pixels:
    """Return a crop whose places [h, w] that are true have its mean colour."""
    side = len(crop)
    rows, columns = (np.minimum(np.arange(side) * size // side, size - 1) for size in places.shape)
    found = crop.copy()
    found[places[rows][:, columns]] = crop.mean(axis=(0, 1)).round().astype(np.uint8)
    return found


def choices(values: Floats, random: np.random.Generator, draws: int) -> list[NDArray[np.bool_]]:
    """Return the places to hide, each [h, w]: the highest, the lowest, moved ones, and random ones."""
    count = round(HIDDEN * values.size)
    order = np.argsort(-values, axis=None, kind="stable")

    def of(places: NDArray[np.intp]) -> NDArray[np.bool_]:
        found = np.zeros(values.size, bool)
        found[places] = True
        return found.reshape(values.shape)

    top = of(order[:count])
    height, width = values.shape
    moves = [divmod(int(random.integers(1, values.size)), width) for _ in range(draws)]
    moved = [np.roll(top, (down % height, across), axis=(0, 1)) for down, across in moves]
    return [top, of(order[-count:]), *moved, *(of(random.permutation(values.size)[:count]) for _ in range(draws))]


def measure(
    model: ExportedModel, bundle: Bundle, scorer: str, crops: list[Pixels], draws: int, seed: int
) -> tuple[Floats, list[tuple[int, Floats]]]:
    """Return the falls of the score [photos, choices], and the answer and map of every photo."""
    head, random = head_of(bundle, scorer), np.random.default_rng(seed)
    views = bundle.manifest.class_maps.views
    falls, maps = [], []
    for crop in progress(crops, f"hiding places, {scorer}", len(crops)):
        _, descriptors, features = model.run_features(crop[None])
        scores = head.scores(descriptors[0])
        answer = int(scores.argmax())
        (values,) = head.maps(by_views(features, views)[:, 0], descriptors[0], [answer])
        changed = np.stack([hidden(crop, places) for places in choices(values, random, draws)])
        falls.append(scores[answer] - [head.scores(d)[answer] for d in model.run(changed)[1]])
        maps.append((answer, values))
    return np.array(falls, np.float32), maps


def say(scorer: str, falls: Floats, draws: int) -> None:
    """Print a row for each comparison."""
    top, lowest, moved, chance = falls[:, 0], falls[:, 1], falls[:, 2 : 2 + draws], falls[:, 2 + draws :]
    others = {
        f"random, mean of {draws}": chance.mean(axis=1), "random, one draw": chance[:, 0],
        f"moved, mean of {draws}": moved.mean(axis=1), "lowest": lowest,
    }  # fmt: skip
    print(f"{scorer}: hiding the highest fifth costs {top.mean():.3f} on average")
    for name, other in others.items():
        wins = int((top > other).sum())
        low, high = wilson(wins / len(top), len(top))
        ratio = top.mean() / other.mean() if other.mean() > 0 else float("inf")
        share, ends = 100 * wins / len(top), f"{100 * low:.1f} to {100 * high:.1f}"
        print(f"  {name}: {other.mean():.3f}, a factor of {ratio:.1f}; the highest costs more on {wins} of {len(top)}")
        print(f"    photos: {share:.1f} %, 95 % interval {ends}")


def draw_sheet(bundle: Bundle, paths: list[Path], head: LinearHead, maps: list[tuple[int, Floats]], file: Path) -> None:
    """Write a picture of some photos, spread over all, with their maps."""
    drawn = []
    for at in np.linspace(0, len(paths) - 1, _SHEET).round().astype(int):
        image, (answer, values) = decode(paths[at].read_bytes()), maps[at]
        area = area_of(bundle.manifest.preprocess, *image.size)
        label = f"{bundle.manifest.classes[answer]} (true: {paths[at].parent.name})"
        drawn.append(draw_map(np.asarray(image), ClassMap(label, values, float(head.bias[answer]), area)))
    high, wide = (max(each.shape[side] for each in drawn) for side in (0, 1))
    padded = [
        np.pad(each, ((0, high - each.shape[0] + 8), (0, wide - each.shape[1] + 8), (0, 0)), constant_values=128)
        for each in drawn
    ]
    rows = [np.concatenate(padded[at : at + _ACROSS], axis=1) for at in range(0, _SHEET, _ACROSS)]
    Image.fromarray(np.concatenate(rows)).save(file)


def main() -> None:
    """Measure every scorer with exact maps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path)
    asked = parser.parse_args()
    bundle = read_bundle(asked.model)
    model = ExportedModel(bundle.onnx, bundle.manifest)
    paths = sorted(path for path in asked.photos.glob("*/*") if path.is_file())
    spec = bundle.manifest.preprocess
    crops = [crop_encoded(path.read_bytes(), spec) for path in paths]
    for scorer in bundle.manifest.class_maps.scorers:
        falls, maps = measure(model, bundle, scorer, crops, asked.draws, asked.seed)
        say(scorer, falls, asked.draws)
        if asked.sheet and scorer == bundle.manifest.default_scorer:
            draw_sheet(bundle, paths, head_of(bundle, scorer), maps, asked.sheet)


if __name__ == "__main__":
    main()
