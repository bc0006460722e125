"""Answer until killed: python answering.py LABELS FIRST [END] prints each number whose change is acknowledged."""

import sys
from pathlib import Path

from penult.label.labels_file import Label, LabelsFile

KINDS = ("typical", "unsure", "random")


def change(number: int) -> dict[str, str | None]:
    """Return what change `number` does: images and their labels, None for one that is taken back."""
    if number % 7 == 5:
        return {f"a,{number - 3}.jpg": f"changed {number}"}
    if number % 11 == 7:
        return {f"a,{number - 5}.jpg": None}
    count = 20 if number % 13 == 0 else 1
    return {f"a,{number}.jpg" if n == 0 else f"grid/{number}-{n}.jpg": f"läbel {number % 9}" for n in range(count)}


def main(path: Path, first: int, end: int) -> None:
    """Change and acknowledge."""
    file = LabelsFile(path, path.parent / "photos")
    print("open", flush=True)
    for number in range(first, end):
        changes = change(number)
        file.put([Label(image, label, KINDS[number % 3]) for image, label in changes.items() if label])
        file.take_back([image for image, label in changes.items() if not label])
        print(number, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else sys.maxsize)
