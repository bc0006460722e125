"""Triton's statistics extension: how often a model has answered and run, and how long that took."""

from dataclasses import dataclass

from penult.service.inference.model_stats import Statistics
from penult.service.models.loader import ServedModel

# Triton's names for the phases of penult.
TRITON_PHASES = {
    "queue": "queue", "decode": "compute_input", "inference": "compute_infer", "score": "compute_output",
}  # fmt: skip


@dataclass(frozen=True)
class StatisticDuration:
    """A count, and its time in nanoseconds."""

    count: int
    ns: int


@dataclass(frozen=True)
class ModelStatistics:
    """What a model has answered since it was loaded, as Triton's statistics extension has it."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: dict[str, StatisticDuration]


def statistics(model: ServedModel, counts: Statistics, runs: int) -> ModelStatistics:
    """Return the statistics of a model from its counts and its number of runs."""
    durations = {"success": counts.success, "fail": counts.fail}
    durations |= {TRITON_PHASES[phase]: duration for phase, duration in counts.phases.items()}
    return ModelStatistics(
        name=model.name,
        version=str(model.version),
        last_inference=counts.last_ms,
        inference_count=counts.images,
        execution_count=runs,
        inference_stats={name: StatisticDuration(d.count, int(1e9 * d.seconds)) for name, d in durations.items()},
    )
