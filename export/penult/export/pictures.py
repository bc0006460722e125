"""The report's pictures, as PNG bytes: learning curves and confusion matrices."""

import io
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from penult.export.history import Epoch, History

_TRAIN, _VAL, _MARK, _MUTED = "#3b6fb6", "#d1603d", "#2f2f2f", "#8a8a8a"
_DPI = 150
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _MUTED,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,  # a class may be called $5
}


def learning_curves(history: History) -> bytes:
    """Draw loss and accuracy per epoch, each phase in a column: rate drops, the best and the last epoch are marked."""
    phases = [(name, history.phase(name)) for name in ("head", "all")]
    phases = [(name, epochs) for name, epochs in phases if epochs]
    with plt.rc_context(_STYLE):
        widths = [1 if name == "head" else 2 for name, _ in phases]
        figure, grid = plt.subplots(
            2, len(phases), figsize=(4.2 * sum(widths) ** 0.75, 5.4), squeeze=False, sharex="col", sharey="row",
            width_ratios=widths, layout="constrained",
        )  # fmt: skip
        for column, (name, epochs) in enumerate(phases):
            title = "head alone, on cached descriptors" if name == "head" else "all layers that are not frozen"
            grid[0][column].set_title(title, loc="left", fontsize=9, color=_MARK)
            _curve(grid[0][column], epochs, "train_loss", "val_loss")
            _curve(grid[1][column], epochs, "train_accuracy", "val_accuracy")
            _mark(grid[0][column], epochs, history.best_loss)
            grid[1][column].set_xlabel("epoch")
        grid[0][0].set_ylabel("loss (cross-entropy)")
        grid[1][0].set_ylabel("accuracy")
        grid[1][0].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        grid[1][-1].legend(loc="lower right")
        return _png(figure)


def confusion_matrices(classes: Sequence[str], metrics: dict[str, dict[str, Any]]) -> bytes:
    """Draw one matrix per scorer on the test photos: rows are true classes, shading is the share of the row."""
    size = max(3.2, 0.42 * len(classes) + 1.6)
    with plt.rc_context(_STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(
            1, len(metrics), figsize=(size * len(metrics), size), squeeze=False, sharey=True, layout="constrained"
        )
        for axis, (scorer, values) in zip(axes[0], metrics.items(), strict=True):
            _matrix(axis, np.array(values["confusion"]), classes)
            title = "SVM on descriptors" if scorer == "svm" else "dense head"
            axis.set_title(f"{title}: {values['accuracy']:.1%}", loc="left", fontsize=9)
        axes[0][0].set_ylabel("true class")
        return _png(figure)


def _curve(axis: Axes, epochs: list[Epoch], train: str, val: str) -> None:
    x = [epoch.epoch for epoch in epochs]
    marker = "o" if len(epochs) <= 12 else None
    axis.plot(x, [getattr(e, train) for e in epochs], color=_TRAIN, marker=marker, ms=3, label="training (eval mode)")
    axis.plot(x, [getattr(e, val) for e in epochs], color=_VAL, marker=marker, ms=3, label="validation")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _mark(axis: Axes, epochs: list[Epoch], kept_loss: float) -> None:
    """Mark the epoch whose weights were kept (or, in the other phase, its best), and drops of the learning rate."""
    best = min(epochs, key=lambda epoch: epoch.val_loss)
    word = "kept" if best.val_loss == kept_loss else "best"
    axis.plot(best.epoch, best.val_loss, "o", ms=9, mfc="none", mec=_MARK)
    axis.annotate(
        f"{word}: epoch {best.epoch}", (best.epoch, best.val_loss), xytext=(0, 12), textcoords="offset points",
        ha="center", fontsize=8, color=_MARK,
    )  # fmt: skip
    for before, after in pairwise(epochs[1:]):  # the first step up is the warm-up
        if after.learning_rate < before.learning_rate * 0.999:
            axis.axvline(after.epoch - 0.5, color=_MUTED, lw=0.8, ls=":")
            axis.text(
                after.epoch - 0.5, 0.98, f" rate {after.learning_rate:.0e}", transform=axis.get_xaxis_transform(),
                va="top", fontsize=7, color=_MUTED, rotation=90,
            )  # fmt: skip


def _matrix(axis: Axes, counts: np.ndarray, classes: Sequence[str]) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(classes))
    axis.set_xticks(ticks, classes, rotation=60, ha="right", rotation_mode="anchor")
    axis.set_yticks(ticks, classes)
    axis.set_xlabel("answered class")
    if len(classes) <= 25:
        for row, column in np.ndindex(*counts.shape):
            if counts[row, column]:
                colour = "white" if shares[row, column] > 0.55 else _MARK
                axis.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=colour)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Class names may be in scripts that no font here has: boxes in a picture are no reason to stop.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(buffer, format="png", dpi=_DPI)
    plt.close(figure)
    return buffer.getvalue()
