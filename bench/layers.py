"""Draw what bench/layers.sh has measured: accuracy of an SVM by layer, a panel for each network.

python bench/layers.py OUT docs/layers.svg
"""

import csv
import sys
from pathlib import Path

from penult.bundle.scores import wilson
from penult.drawing import BLUE, PURPLE, figure, style, svg

_TEST_PHOTOS = 431
_LOOKS = {"as given": (PURPLE, "D"), "random weights": (PURPLE, "D"), "fine-tuned": (BLUE, "o"), "trained": (BLUE, "o")}


def main(folder: Path, target: Path) -> None:
    """Read each network's table.csv, and write the picture."""
    tables = [folder / name / "sweep-layers" / "table.csv" for name in ("squeezenet1_1", "mobilenet_v2", "alexnet")]
    with style():
        made = figure(9.0, 3.0)
        for axis, table in zip(made.subplots(1, len(tables), sharey=True), tables, strict=True):
            rows = list(csv.DictReader(table.read_text().splitlines()))
            layers = list(dict.fromkeys(row["at"] for row in rows))
            for aside, mode in enumerate(dict.fromkeys(row["mode"] for row in rows)):
                own = {row["at"]: float(row["test_accuracy"]) for row in rows if row["mode"] == mode}
                bounds = [wilson(value, _TEST_PHOTOS) for value in own.values()]
                bars = [[value - low for value, (low, _) in zip(own.values(), bounds, strict=True)],
                        [high - value for value, (_, high) in zip(own.values(), bounds, strict=True)]]  # fmt: skip
                colour, marker = _LOOKS[mode]
                places = [layers.index(layer) + 0.1 * aside for layer in own]
                axis.errorbar(places, list(own.values()), yerr=bars, label=mode, color=colour, marker=marker, ms=4,
                              lw=1.4, elinewidth=0.8, capsize=2)  # fmt: skip
            axis.set_xticks(range(len(layers)), [layer.removeprefix("stage") for layer in layers], rotation=30)
            axis.set_title(table.parts[-3])
            axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
            axis.legend(loc="best")
        made.axes[0].set_ylabel(f"accuracy on {_TEST_PHOTOS} test photos")
        made.supxlabel("conv stage or dense layer that the SVM reads, from the input", fontsize=9)
        target.write_bytes(svg(made))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
