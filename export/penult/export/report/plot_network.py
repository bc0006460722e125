"""Plot the changes in the network: first filters before and after, and the relative change of each layer."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from penult.drawing import BLUE, GREEN, INK, MUTED, ORANGE, PAGE, PURPLE, SKY, VERMILION, style, svg
from penult.export.networks.weight_changes import STATISTICS, LayerChange
from penult.export.report.plot_style import new

Filters = NDArray[np.float32]

_STAGES = (SKY, BLUE, GREEN, ORANGE, VERMILION, PURPLE)
_MAX_FILTERS = 64


def first_filters(before: Filters, after: Filters, layer: str) -> bytes:
    """Return the filters of the first convolution as colour tiles (SVG).

    Each filter is scaled to its own range, the same before and after. If they differ, the difference is drawn too, on
    one scale for all filters; if not, they are drawn once. `before` and `after` are [filters, 3, height, width].
    """
    before, after = before[:_MAX_FILTERS], after[:_MAX_FILTERS]
    both = np.concatenate([before, after], axis=1)
    low, high = (edge(axis=(1, 2, 3), keepdims=True) for edge in (both.min, both.max))
    stretched = [(filters - low) / np.maximum(high - low, 1e-12) for filters in (before, after)]
    moved = float(np.abs(after - before).max())
    with style():
        if not moved:
            figure, axes = new(2.2)
            figure.suptitle(layer, x=0.01, ha="left", fontsize=9)
            _tiles(axes[0][0], stretched[0], "unchanged, bit-identical")
            return svg(figure)
        figure, axes = new(1.75, columns=3)
        share = moved / (float(np.abs(before).max()) or 1.0)
        titles = ("before", "after", f"change ≤ {share:.2g}" if share < 0.001 else f"change ≤ {share:.1%}")
        figure.suptitle(layer, x=0.01, ha="left", fontsize=9)
        for axis, title, filters in zip(
            axes[0], titles, (*stretched, 0.5 + (after - before) / (2 * moved)), strict=True
        ):
            _tiles(axis, filters, title)
        return svg(figure)


def relative_changes(changes: Sequence[LayerChange]) -> bytes:
    """Return a bar per layer and a mark per batch norm (SVG), on a logarithmic scale that reaches 0."""
    layers = [change for change in changes if change.kind != STATISTICS]
    stages = list(dict.fromkeys(change.stage for change in layers))
    colours = dict(zip(stages, _STAGES, strict=False))
    with style():
        figure, axes = new(2.4 if any(change.change for change in changes) else 2.2)
        axis = axes[0][0]
        moved = [(place, layer.change, colours[layer.stage]) for place, layer in enumerate(layers) if layer.change]
        axis.bar([m[0] for m in moved], [m[1] for m in moved], width=0.8, color=[m[2] for m in moved])
        _statistics(axis, changes)
        _scale(axis, [change.change for change in changes])
        for stage in stages:
            _name_stage(axis, [place for place, change in enumerate(layers) if change.stage == stage], layers)
        axis.set_xticks([])
        axis.grid(visible=False, axis="x")
        axis.set_xlim(-0.8, len(layers) - 0.2)
        axis.set_ylabel("|after − before| / |before|")
        axis.set_xlabel("layers from the input, by stage", labelpad=18)
        if any(change.kind == STATISTICS for change in changes):
            figure.legend(loc="outside upper left")
        return svg(figure)


def _tiles(axis: Axes, filters: Filters, title: str) -> None:
    """Show filters [n, 3, height, width] with values 0 to 1 as tiles with lines between them."""
    count, _, height, width = filters.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    # Each value becomes a block, so that the line between filters can be thinner than a value.
    block = max(1, 24 // max(height, width))
    step_y, step_x = height * block + 2, width * block + 2
    canvas = np.zeros((rows * step_y - 2, columns * step_x - 2, 4))  # transparent between the filters
    for number, tile in enumerate(filters):
        top, left = step_y * (number // columns), step_x * (number % columns)
        pixels = np.kron(tile.transpose(1, 2, 0), np.ones((block, block, 1)))
        canvas[top : top + height * block, left : left + width * block] = np.dstack([pixels, np.ones(pixels.shape[:2])])
    axis.imshow(canvas.clip(0, 1), interpolation="none")
    axis.set_title(title)
    axis.set_axis_off()


def _statistics(axis: Axes, changes: Sequence[LayerChange]) -> None:
    """Mark the change of each batch norm's mean and variance over the layer before it."""
    places, values, at = [], [], -1
    for change in changes:
        if change.kind == STATISTICS:
            places.append(max(at, 0))
            values.append(change.change)
        else:
            at += 1
    if places:
        look: dict[str, Any] = {"ms": 3.5, "mfc": PAGE, "mec": INK, "mew": 0.9, "clip_on": False, "zorder": 3}
        axis.plot(places, values, "D", label="batch norm's mean and variance", **look)
        axis.bar([0], [0], color=MUTED, label="weight")


def _scale(axis: Axes, values: Sequence[float]) -> None:
    """Make the axis logarithmic above the smallest change that is not 0, and linear from there to 0."""
    moved = [value for value in values if value]
    if not moved:
        axis.set_ylim(0, 1)
        axis.set_yticks([0], ["0"])
        return
    bottom, top = math.floor(math.log10(min(moved))), math.ceil(math.log10(max(moved)))
    axis.set_yscale("symlog", linthresh=10.0**bottom, linscale=0.5)
    ticks = [0.0, *(10.0**power for power in range(bottom, top + 1))]
    axis.set_yticks(ticks, [f"{100 * tick:g}%" if tick else "0" for tick in ticks])
    axis.set_yticks([], minor=True)
    axis.set_ylim(0, 10.0**top * 1.6)


def _name_stage(axis: Axes, places: list[int], layers: Sequence[LayerChange]) -> None:
    """Write the stage's name below its bars, and "frozen" if no weight changed."""
    stage = layers[places[0]].stage
    middle, below = (places[0] + places[-1]) / 2, axis.get_xaxis_transform()
    axis.text(middle, -0.04, stage.removeprefix("stage "), transform=below, ha="center", va="top", color=INK)
    axis.plot([places[0] - 0.4, places[-1] + 0.4], [-0.02, -0.02], transform=below, color=INK, lw=1, clip_on=False)
    if not any(layers[place].change for place in places):
        axis.text(
            middle, 0.03, "unchanged: exactly 0", transform=below, ha="center", va="bottom", rotation=90, color=INK,
        )  # fmt: skip
