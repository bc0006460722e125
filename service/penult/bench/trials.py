"""What --tune tries, and the rule by which it chooses."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from penult.service.config import ServeConfig

Values = dict[str, int | float | str]

_CPU_PROVIDER = "CPUExecutionProvider"
# Differences of repeated trials of one setting on a quiet machine.
_SAME_RATE, _SAME_P99 = 0.03, 0.1
_BALANCED_P99 = 1.5
RULES = {
    "balanced": f"the most images/s among those whose p99 is within {_BALANCED_P99:g}x of the best p99",
    "throughput": "the most images/s",
    "latency": "the lowest p99",
}


@dataclass(frozen=True)
class Trial:
    """One setting and its results; `is_clean` if every image was answered."""

    values: Values
    images_per_s: float
    p50_ms: float
    p99_ms: float
    server_cpu_ms_per_image: float | None
    batch_images: float | None
    is_clean: bool


def choose(trials: Sequence[Trial], goal: str) -> Trial:
    """Return the best trial by the goal's rule; trials with failures only if there are no others."""
    able = [trial for trial in trials if trial.is_clean] or list(trials)
    lowest = min(trial.p99_ms for trial in able)
    if goal == "latency":
        return next(trial for trial in able if trial.p99_ms <= lowest * (1 + _SAME_P99))
    if goal == "balanced":
        able = [trial for trial in able if trial.p99_ms <= lowest * _BALANCED_P99]
    highest = max(trial.images_per_s for trial in able)
    return next(trial for trial in able if trial.images_per_s >= highest * (1 - _SAME_RATE))


def groups(provider: str, cores: int, max_images: int) -> list[dict[str, list[Any]]]:
    """Return the values to try, group by group.

    `max_images`: images in flight, which limit the batch.
    """
    is_cpu = provider == _CPU_PROVIDER
    batches = [n for n in ((1, 2, 4, 8, 16) if is_cpu else (8, 16, 32, 64, 128)) if n <= max_images]
    known = {f.name for f in fields(ServeConfig)}
    wanted: list[dict[str, list[Any]]] = [
        {"cpu_mode": ["latency", "throughput"] if is_cpu else [], "batch_max_images": batches},
        {"batch_delay_ms": [0.0, 1.0, 2.0, 5.0]},
        {"threads": [max(1, cores // 2), 0, 2 * cores]},
    ]
    found = [{name: values for name, values in group.items() if name in known and values} for group in wanted]
    return [group for group in found if group]


def mean(one: Trial, other: Trial) -> Trial:
    """Return the mean of two trials of one setting."""
    numbers = {
        name: (getattr(one, name) + getattr(other, name)) / 2
        for name in ("images_per_s", "p50_ms", "p99_ms", "server_cpu_ms_per_image", "batch_images")
        if None not in (getattr(one, name), getattr(other, name))
    }
    return replace(one, is_clean=one.is_clean and other.is_clean, **numbers)


def words(values: Values) -> str:
    """Return settings as text."""
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "the current settings"


def gain(before: Trial, best: Trial) -> str:
    """Return what the best setting gains over the current ones, as text."""
    rate = best.images_per_s / before.images_per_s if before.images_per_s else float("inf")
    return f"{rate:.2f}x the images/s and {best.p99_ms / before.p99_ms:.2f}x the p99 of the current settings (1)"
