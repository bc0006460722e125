"""Rounds of training whose learning rate ends when the time ends.

A round is an epoch, or a part of one. After each round the rest of the one-cycle schedule is spread over the rounds
that still fit into the time. What was done is recorded, so that it can be repeated without a clock.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, TypeVar

import torch

from penult.export.training.schedule import Schedule, one_cycle

T = TypeVar("T")


@dataclass(frozen=True)
class Round:
    """A part of the training between two measurements.

    Attributes:
        steps: Steps over which the schedule goes on, as planned.
        start: Progress of the schedule before, 0 to 1.
        end: Progress of the schedule after all steps.
        taken: Steps taken, fewer if the time ended.
    """

    steps: int
    start: float
    end: float
    taken: int

    def progress(self, step: int) -> float:
        """Return the progress at a step, from 0."""
        return self.start + (self.end - self.start) * min(step / max(self.steps - 1, 1), 1.0)


class Pace(Protocol):
    """Decides on the rounds of a training, in every process alike."""

    def next_round(self, done: Sequence[Round]) -> Round | None:
        """Return the next round, with as many steps to take as planned; None at the end."""

    def is_over(self) -> bool:
        """Return True if the round must end at this step."""


class Recorded:
    """Repeats rounds, without a clock."""

    def __init__(self, rounds: Sequence[Round]) -> None:
        """Repeat these."""
        self.rounds = tuple(rounds)

    def next_round(self, done: Sequence[Round]) -> Round | None:
        """Return the round after those that are done."""
        return self.rounds[len(done)] if len(done) < len(self.rounds) else None

    def is_over(self) -> bool:
        """Return False, because the rounds record where they ended."""
        return False


class Paced(Schedule):
    """One cycle over rounds: the rate rises over a quarter of them, then falls along a cosine."""

    def __init__(self, optimizer: torch.optim.Optimizer, best: float, pace: Pace) -> None:
        """Start from the optimizer's rates, and ask `pace` for rounds."""
        super().__init__(optimizer, best, stop_patience=1)
        self.pace = pace
        self.done: list[Round] = []
        self.current = pace.next_round(self.done)

    def batches(self, given: Iterable[T]) -> Iterator[T]:
        """Yield the batches of the current round."""
        assert self.current is not None  # the phase ends with the last round
        for number, batch in enumerate(given):
            if number >= self.current.taken or (number and self.pace.is_over()):
                return
            yield batch

    def before_step(self) -> None:
        """Set the rates of the optimizer's next step."""
        assert self.current is not None
        factor = one_cycle(self.current.progress(self.step))
        self.step += 1
        for group, target in zip(self.optimizer.param_groups, self.targets, strict=True):
            group["lr"] = target * factor

    def after_epoch(self, val_loss: float) -> bool:
        """Record a round; return True if it is the best so far."""
        assert self.current is not None
        self.done.append(replace(self.current, taken=self.step))
        self.step, self.current = 0, self.pace.next_round(self.done)
        return self.stopping.improved(val_loss)

    @property
    def is_over(self) -> bool:
        """True if no round is left."""
        return self.current is None

    def state_dict(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint."""
        return super().state_dict() | {"done": [asdict(each) for each in self.done]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint, with the rounds that still fit."""
        super().load_state_dict(state)
        self.done = [Round(**each) for each in state["done"]]
        self.step, self.current = 0, self.pace.next_round(self.done)


OnRounds = Callable[[Sequence[Round]], None]
