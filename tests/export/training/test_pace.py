"""Rounds: the rate follows the progress that was planned, and what was done can be repeated without a clock."""

from collections.abc import Sequence

import pytest
import torch

from penult.export.training.pace import Paced, Recorded, Round
from penult.export.training.schedule import one_cycle


class _Cut:
    """Two rounds of four steps; the second is cut after its second step."""

    def __init__(self) -> None:
        self.asked = 0

    def next_round(self, done: Sequence[Round]) -> Round | None:
        return (Round(4, 0, 0.5, 4), Round(4, 0.5, 1, 4), None)[len(done)]

    def is_over(self) -> bool:
        self.asked += 1
        return self.asked > 4


def _run(pace: object) -> tuple[list[float], Paced]:
    """Return the rate of every step, of batches that never end, and the schedule."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    paced = Paced(optimizer, 9.0, pace)  # type: ignore[arg-type]
    rates = []
    while not paced.is_over:
        for _ in paced.batches(range(100)):
            paced.before_step()
            rates.append(optimizer.param_groups[0]["lr"])
        paced.after_epoch(1.0)
    return rates, paced


def test_the_rate_follows_the_rounds():
    """Each round goes on where the one before ended."""
    rates, paced = _run(Recorded((Round(3, 0, 0.25, 3), Round(2, 0.25, 1, 2))))
    assert rates == pytest.approx([2 * one_cycle(p) for p in (0, 0.125, 0.25, 0.25, 1)])
    assert paced.done == [Round(3, 0, 0.25, 3), Round(2, 0.25, 1, 2)]


def test_a_round_that_the_clock_cut_is_repeated_as_it_was():
    """The steps that were taken are recorded, with the rates of the whole round."""
    rates, paced = _run(_Cut())
    assert [each.taken for each in paced.done] == [4, 2]
    assert _run(Recorded(paced.done))[0] == rates


def test_an_interrupted_training_goes_on_after_its_rounds():
    """A checkpoint has the rounds; the pace is asked for the next one."""
    rounds = (Round(3, 0, 0.25, 3), Round(2, 0.25, 1, 2))
    _, paced = _run(Recorded(rounds[:1]))
    again = Paced(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0), 9.0, Recorded(rounds))
    again.load_state_dict(paced.state_dict())
    assert again.current == rounds[1]
