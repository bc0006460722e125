"""Pictures of the test photos: where their descriptors lie, and those that were most surely wrong."""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from penult.bundle.preprocess import Pixels
from penult.drawing import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILION, png, style
from penult.export.descriptor_map import DescriptorMap
from penult.export.pictures import new, short

_LOOKS = tuple((colour, marker) for marker, colour in product("os^Dv", (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)))
_MOST_NAMED = 12
_COLUMNS = 3


def descriptor_map(
    points: DescriptorMap, labels: NDArray[np.int64], right: NDArray[np.bool_], classes: Sequence[str]
) -> bytes:
    """Draw descriptors in the plane, PCA and t-SNE beside each other, by true class; wrongly named photos are ringed.

    `labels` and `right` are [N], in the order of the points.
    """
    with style():
        figure, axes = new(3.0, columns=2)
        _scatter(axes[0][0], points.pca, labels, right, classes)
        axes[0][0].set_title(f"PCA ({points.explained:.0%} of the variance)")
        if points.tsne is None:
            axes[0][1].set_axis_off()
        else:
            _scatter(axes[0][1], points.tsne, labels, right, classes)
            axes[0][1].set_title("t-SNE")
        handles, names = axes[0][0].get_legend_handles_labels()
        if len(classes) <= _MOST_NAMED:
            figure.legend(handles, names, loc="outside lower left", ncols=3, markerscale=1.5)
        return png(figure)


def worst_errors(crops: Pixels, captions: Sequence[str]) -> bytes:
    """Draw test photos, uint8 [N, size, size, 3], in a grid with a caption below each."""
    rows = math.ceil(len(crops) / _COLUMNS)
    with style():
        figure, axes = new(1.95 * rows, rows=rows, columns=_COLUMNS)
        for axis in axes.flat:
            axis.set_visible(False)
        for axis, crop, caption in zip(axes.flat, crops, captions, strict=False):
            axis.imshow(crop, interpolation="antialiased")
            axis.set(visible=True, xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            axis.set_xlabel(caption, loc="left", fontsize=8, color=INK)
        return png(figure)


def _scatter(
    axis: Axes,
    points: NDArray[np.floating],
    labels: NDArray[np.int64],
    right: NDArray[np.bool_],
    classes: Sequence[str],
) -> None:
    size = 14 if len(labels) < 300 else 7
    for label, name in enumerate(classes):
        rows = labels == label
        colour, marker = _LOOKS[label % len(_LOOKS)]
        axis.scatter(
            points[rows, 0], points[rows, 1], s=size, color=colour, marker=marker, alpha=0.75, lw=0, label=short(name)
        )
    if not right.all():
        axis.scatter(points[~right, 0], points[~right, 1], s=4 * size, fc="none", ec=INK, lw=0.9, label="wrongly named")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(visible=False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(MUTED)
