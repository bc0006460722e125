"""Plot the learning curves, loss and accuracy by epoch, with the zones of the diagnosis."""

from collections.abc import Sequence
from itertools import groupby, pairwise

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from penult.drawing import BLUE, FAINT, INK, MUTED, ORANGE, PAGE, SKY, VERMILION, style, svg
from penult.export.evaluation.diagnosis import GOOD, OVER_FIT, UNDER_FIT, ZONES, Diagnosis
from penult.export.report.plot_style import new, percent
from penult.export.training.history import Epoch

_TRAIN, _VAL = BLUE, VERMILION
# Hatched too, so that the zones can be distinguished without colour.
_ZONES = {UNDER_FIT: (SKY, 0.25, "//"), GOOD: (FAINT, 0.0, ""), OVER_FIT: (ORANGE, 0.25, "\\\\")}
_TITLES = {"head": "Head only, on cached descriptors", "all": "All layers that are not frozen"}
_MANY = 12


def learning_curves(epochs: Sequence[Epoch], diagnosis: Diagnosis) -> bytes:
    """Return the plot of one phase (SVG): loss, accuracy, shaded zones, the best epoch and rate drops."""
    phase = epochs[0].phase
    with style():
        figure, axes = new(3.6, rows=2, sharex=True, height_ratios=(3, 2))
        loss, accuracy = axes[0][0], axes[1][0]
        loss.set_title(_TITLES.get(phase, phase), color=INK)
        for axis in (loss, accuracy):
            _shade(axis, epochs, diagnosis.zones[phase])
            _mark_rates(axis, epochs)
        _curves(loss, epochs, "train_loss", "val_loss")
        _curves(accuracy, epochs, "train_accuracy", "val_accuracy")
        _band(loss, epochs)
        _mark_best(loss, epochs, diagnosis.kept_phase == phase)
        loss.set_ylabel("loss (cross-entropy)")
        loss.set_ylim(bottom=0)
        accuracy.set_ylabel("accuracy")
        percent(accuracy.yaxis)
        accuracy.xaxis.set_major_locator(MaxNLocator(integer=True))
        accuracy.set_xlabel(f"epoch (the last is {epochs[-1].epoch})")
        figure.legend(handles=_legend(diagnosis.zones[phase], epochs), loc="outside upper left", ncols=2)
        return svg(figure)


def _curves(axis: Axes, epochs: Sequence[Epoch], train: str, val: str) -> None:
    x = [epoch.epoch for epoch in epochs]
    few = len(epochs) <= _MANY
    axis.plot(x, [getattr(e, train) for e in epochs], color=_TRAIN, marker="o" if few else None, ms=3)
    axis.plot(x, [getattr(e, val) for e in epochs], color=_VAL, marker="s" if few else None, ms=3, ls="--")


def _band(axis: Axes, epochs: Sequence[Epoch]) -> None:
    """Show the standard error of the validation loss, if the history has it."""
    errors = [float(getattr(epoch, "val_loss_error", 0.0)) for epoch in epochs]
    if any(errors):
        low, high = ([e.val_loss + sign * error for e, error in zip(epochs, errors, strict=True)] for sign in (-1, 1))
        axis.fill_between([e.epoch for e in epochs], low, high, color=_VAL, alpha=0.15, lw=0)


def _shade(axis: Axes, epochs: Sequence[Epoch], zones: Sequence[str]) -> None:
    for zone, rows in groupby(zip(epochs, zones, strict=True), key=lambda row: row[1]):
        within = [epoch.epoch for epoch, _ in rows]
        colour, alpha, hatch = _ZONES[zone]
        if alpha:
            axis.axvspan(
                within[0] - 0.5, within[-1] + 0.5, facecolor=(colour, alpha), edgecolor=(colour, 0.4), hatch=hatch, lw=0
            )
    axis.set_xlim(epochs[0].epoch - 0.5, epochs[-1].epoch + 0.5)


def _mark_best(axis: Axes, epochs: Sequence[Epoch], is_kept: bool) -> None:
    """Mark the epoch whose weights were kept or, in the other phase, the best one."""
    best = min(epochs, key=lambda epoch: epoch.val_loss)
    right = best.epoch > (epochs[0].epoch + epochs[-1].epoch) / 2
    axis.plot(best.epoch, best.val_loss, "o", ms=10, mfc="none", mec=INK, mew=1.2, clip_on=False)
    axis.axvline(best.epoch, color=INK, lw=0.8)
    axis.annotate(
        f"{'kept' if is_kept else 'best'}: epoch {best.epoch}", (best.epoch, 0.97), xycoords=axis.get_xaxis_transform(),
        xytext=(-4 if right else 4, 0), textcoords="offset points", ha="right" if right else "left", va="top",
        color=INK, bbox={"boxstyle": "round,pad=0.2", "fc": PAGE, "ec": "none", "alpha": 0.85},
    )  # fmt: skip


def _mark_rates(axis: Axes, epochs: Sequence[Epoch]) -> None:
    for epoch in _lowered(epochs):
        axis.axvline(epoch - 0.5, color=MUTED, lw=1, ls=":")


def _lowered(epochs: Sequence[Epoch]) -> list[int]:
    """Return the epochs with a lower rate than the one before; the first change belongs to the warm-up."""
    steps = pairwise(epochs[1:])
    return [after.epoch for before, after in steps if after.learning_rate < before.learning_rate * 0.999]


def _legend(zones: Sequence[str], epochs: Sequence[Epoch]) -> list[Line2D | Patch]:
    lines: list[Line2D | Patch] = [
        Line2D([], [], color=_TRAIN, label="training (eval mode)"),
        Line2D([], [], color=_VAL, ls="--", label="validation"),
    ]
    if _lowered(epochs):
        lines.append(Line2D([], [], color=MUTED, ls=":", label="rate lowered"))
    for zone in (zone for zone in ZONES if zone in zones):
        colour, alpha, hatch = _ZONES[zone]
        edge = FAINT if zone == GOOD else (colour, 0.4)
        lines.append(Patch(facecolor=(colour, alpha), edgecolor=edge, hatch=hatch, lw=zone == GOOD, label=zone))
    return lines
