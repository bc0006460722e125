"""What opening and answering cost with many rows in the label file.

python bench/labels_file.py [--rows 100000]
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

from penult.label.labels_file import Label, LabelsFile

ANSWERS = 50


def main() -> None:
    """Write a file, then print seconds and CPU seconds of each step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        root, path = Path(folder) / "photos", Path(folder) / "labels.csv"
        root.mkdir()
        lines = (f"folder{n % 50}/photo{n:06d}.jpg,class{n % 7},unsure,class{n % 5}\n" for n in range(rows))
        path.write_text("image,label,picked,guess\n" + "".join(lines))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        file = timed("open", lambda: LabelsFile(path, root))
        new = [Label(f"new/{n}.jpg", "class1", "random", "class2") for n in range(ANSWERS)]
        timed(f"{ANSWERS} new labels", lambda: [file.put([each]) for each in new])
        timed("a grid of 20", lambda: file.put([Label(f"grid/{n}.jpg", "class1") for n in range(20)]))
        timed("a changed label", lambda: file.put([Label("folder0/photo000000.jpg", "class2")]))
        with path.open("a") as other:
            other.write("x.jpg,class1,,\n")
        timed("another program's row", file.refresh)
        file.close()
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(f"{path.stat().st_size / 1e6:.1f} MB of text, {more:.0f} MB of memory")


def timed(what: str, action) -> object:
    """Do it, and print what it took."""
    start, cpu = time.perf_counter(), time.process_time()
    result = action()
    print(f"{what}: {time.perf_counter() - start:.3f} s, {time.process_time() - cpu:.3f} CPU-s")
    return result


if __name__ == "__main__":
    main()
