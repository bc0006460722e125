"""Near-copies: how many are found, how many other photos are joined, and what they do to a split.

    python bench/near_copies.py PHOTOS --weights FILE [--arch A] [--every N] [--sheet FILE] [--real]

PHOTOS is a folder of class folders. Each photo becomes three: crops of 0.8 to 1 of each side at random places,
brightness 0.7 to 1.4, contrast 0.8 to 1.25, size 0.6 to 1, JPEG quality 60 to 95, under random names. Printed are

- pairs: share of the pairs of copies of one photo that are in one group;
- joined: share of photos in a group with a copy of another photo;
- parted: share of photos whose copies are in more than one split, and the test accuracy of a linear SVM on the frozen
  descriptors, without groups and with --group-by near-duplicates.

With --real the photos are taken as they are, and the pairs found are listed. --sheet draws the joined pairs.
"""

import argparse
import hashlib
import io
import random
import resource
import tempfile
import time
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance
from sklearn.svm import LinearSVC

from penult.export.config.photos import PhotoSource
from penult.export.data.dataset import load_splits
from penult.export.data.splitting import Photo
from penult.export.evaluation.near_copies import Pair, find_pairs, group_ids
from penult.export.jobs.frozen_descriptors import FrozenNetwork, of_weights
from penult.export.jobs.near_copy_groups import near_copies

COPIES = 3
_TILE = 160


def copies(path: Path) -> list[bytes]:
    """Return the copies of a photo as JPEGs; they depend on its name alone."""
    image, made = Image.open(path).convert("RGB"), []
    for number in range(COPIES):
        of = random.Random(f"burst {path.parent.name}/{path.name} {number}")
        side = of.uniform(0.8, 1)
        width, height = round(image.width * side), round(image.height * side)
        left, top = of.randint(0, image.width - width), of.randint(0, image.height - height)
        copy = image.crop((left, top, left + width, top + height))
        copy = ImageEnhance.Brightness(copy).enhance(2 ** of.uniform(-0.5, 0.5))
        copy = ImageEnhance.Contrast(copy).enhance(of.uniform(0.8, 1.25))
        size = of.uniform(0.6, 1)
        copy = copy.resize((round(copy.width * size), round(copy.height * size)), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        copy.save(file, "JPEG", quality=of.randint(60, 95))
        made.append(file.getvalue())
    return made


def make_bursts(photos: list[Path], folder: Path) -> dict[str, str]:
    """Write the copies of photos under random names; return the source of each copy by its name."""
    sources = {}
    for path in photos:
        for data in copies(path):
            name = hashlib.sha256(b"name" + data).hexdigest()[:16]
            target = folder / path.parent.name / f"{name}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            sources[name] = f"{path.parent.name}/{path.stem}"
    return sources


def measure_bursts(folder: Path, sources: dict[str, str], network: FrozenNetwork) -> tuple[list[Photo], list[Pair]]:
    """Print what is found among the copies, and what splits do; return photos and false pairs."""
    photos = [Photo(path, 0, hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(folder.rglob("*.jpg"))]
    descriptors = network.describe(photos)
    start = time.process_time()
    pairs = find_pairs(photos, descriptors)
    groups = group_ids(len(photos), pairs)
    seconds = time.process_time() - start
    source = [sources[photo.path.stem] for photo in photos]
    rows = defaultdict(list)
    for row, name in enumerate(source):
        rows[name].append(row)
    true = [pair for of_one in rows.values() for pair in combinations(of_one, 2)]
    found = {pair[:2] for pair in pairs}
    false = [pair for pair in pairs if source[pair.row] != source[pair.other]]
    mixed = {
        group for group in set(groups.tolist()) if len({source[row] for row in np.flatnonzero(groups == group)}) > 1
    }
    direct = {row for pair in false for row in pair[:2]}
    print(
        f"{len(photos)} photos, {len(true)} pairs: found {np.mean([pair in found for pair in true]):.4f}, "
        f"in one group {np.mean([groups[a] == groups[b] for a, b in true]):.4f}; "
        f"{len(false)} false pairs of {len({frozenset((source[p.row], source[p.other])) for p in false})} sources, "
        f"joined directly {len(direct) / len(photos):.4f}, by groups {np.isin(groups, list(mixed)).mean():.4f}; "
        f"largest group {np.bincount(groups).max()}; {seconds:.0f} CPU s, "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB at most",
        flush=True,
    )
    vectors = dict(zip([photo.sha256 for photo in photos], descriptors, strict=True))
    for group_by in ("no", "near-duplicates"):
        show_split(folder, sources, vectors, group_by, network)
    return photos, false


def show_split(
    folder: Path, sources: dict[str, str], vectors: dict[str, np.ndarray], group_by: str, network: FrozenNetwork
) -> None:
    """Print how many photos have copies in another split, and the accuracy on the test photos."""
    source = PhotoSource(folder, group_by=group_by)
    splits = load_splits(source, Path(f"{folder}-out"), "0.15", "0.15", 0, near_copies(group_by, lambda: network))
    where = defaultdict(set)
    parts = {part: getattr(splits, part) for part in ("train", "val", "test")}
    for part, photos in parts.items():
        for photo in photos:
            where[sources[photo.path.stem]].add(part)
    parted = np.mean([len(where[sources[photo.path.stem]]) > 1 for photos in parts.values() for photo in photos])
    x, y = ([np.stack([vectors[p.sha256] for p in parts[part]]) for part in ("train", "test")],
            [[p.label for p in parts[part]] for part in ("train", "test")])  # fmt: skip
    x = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in x]
    accuracy = LinearSVC(C=10, random_state=0).fit(x[0], y[0]).score(x[1], y[1])
    print(f"  --group-by {group_by}: {splits.counts()}, parted {parted:.4f}, SVM {100 * accuracy:.1f} %", flush=True)


def draw(photos: list[Photo], pairs: list[Pair], file: Path) -> None:
    """Draw pairs of photos beside each other, with their similarity."""
    across, tile = 5, (2 * _TILE + 8, _TILE + 16)
    sheet = Image.new("RGB", (across * tile[0], max(1, -(-len(pairs) // across)) * tile[1]), "white")
    for number, pair in enumerate(pairs):
        left, top = number % across * tile[0], number // across * tile[1]
        for place, row in enumerate(pair[:2]):
            image = Image.open(photos[row].path).convert("RGB")
            image.thumbnail((_TILE, _TILE))
            sheet.paste(image, (left + place * _TILE, top))
        names = " ".join("/".join(photos[row].path.parts[-3:]) for row in pair[:2])
        ImageDraw.Draw(sheet).text((left, top + _TILE), f"{pair.similarity:.2f} {names}"[:60], fill="black")
    sheet.save(file)


def main() -> None:
    """Measure one set of photos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--arch", default="squeezenet1_1")
    parser.add_argument("--every", type=int, default=1, help="take every nth photo only")
    parser.add_argument("--sheet", type=Path, help="PNG of the pairs joined")
    parser.add_argument("--real", action="store_true", help="no copies: list the near-copies that are there")
    given = parser.parse_args()
    paths = sorted(given.photos.rglob("*.jpg"))[:: given.every]
    network = of_weights(given.arch, given.weights)
    if given.real:
        photos = [Photo(path, 0, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]
        pairs = find_pairs(photos, network.describe(photos))
        for pair in pairs:
            print(f"{pair.similarity:.3f}", *("/".join(photos[row].path.parts[-3:]) for row in pair[:2]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            photos, pairs = measure_bursts(Path(folder), make_bursts(paths, Path(folder)), network)
            if given.sheet:
                draw(photos, pairs[:60], given.sheet)
        return
    if given.sheet:
        draw(photos, pairs[:60], given.sheet)


if __name__ == "__main__":
    main()
