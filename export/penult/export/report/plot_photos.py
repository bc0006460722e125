"""Plot the test photos' descriptors in the plane, with rings around wrong answers."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from penult.drawing import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILION, style, svg
from penult.export.report.descriptor_map import DescriptorMap
from penult.export.report.plot_style import label, new

_LOOKS = tuple((colour, marker) for marker, colour in product("os^Dv", (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)))
MAX_NAMED = 12
_LONGEST_NAME = 14


def descriptor_map(
    points: DescriptorMap, labels: NDArray[np.int64], right: NDArray[np.bool_], classes: Sequence[str]
) -> bytes:
    """Draw descriptors in the plane, PCA and t-SNE beside each other, by true class; wrongly named photos are ringed.

    `labels` and `right` are [N], in the order of the points. More classes than there are looks are drawn alike.
    """
    with style():
        has_names = len(classes) <= MAX_NAMED
        figure, axes = new(2.3 + (0.2 * len(classes) / 2 if has_names else 0), columns=2)
        _scatter(axes[0][0], points.pca, labels, right, classes)
        axes[0][0].set_title(f"PCA, {points.explained:.0%} of variance")
        if points.tsne is None:
            axes[0][1].set_axis_off()
        else:
            _scatter(axes[0][1], points.tsne, labels, right, classes)
            axes[0][1].set_title("t-SNE")
        handles, names = axes[0][0].get_legend_handles_labels()
        if has_names:
            figure.legend(handles, names, loc="outside lower left", ncols=2, markerscale=1.5)
        return svg(figure)


def _scatter(
    axis: Axes,
    points: NDArray[np.floating],
    labels: NDArray[np.int64],
    right: NDArray[np.bool_],
    classes: Sequence[str],
) -> None:
    size = 14 if len(labels) < 300 else 7
    look_alike = len(classes) > len(_LOOKS)
    for at in [-1] if look_alike else np.unique(labels):
        rows = np.ones(len(labels), bool) if look_alike else labels == at
        colour, marker = _LOOKS[0 if look_alike else at]
        axis.scatter(
            points[rows, 0], points[rows, 1], s=size, color=colour, marker=marker, alpha=0.75, lw=0,
            label=label(classes[at], _LONGEST_NAME),
        )  # fmt: skip
    if not right.all():
        axis.scatter(points[~right, 0], points[~right, 1], s=4 * size, fc="none", ec=INK, lw=0.9, label="wrong answer")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(visible=False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(MUTED)
