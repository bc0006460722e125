"""The estimate of accuracy: true where probabilities are, wide where photos are few, and unreliable after a change."""

import json

import numpy as np
import pytest

from penult.service.observability.answer_window import (
    AnswerWindow,
    Reference,
    Windows,
    WindowState,
    merged,
    unsmoothed,
)
from penult.service.observability.truths import RECENT, Truth, Truths
from penult.service.observability.worker_windows import read_windows

SHARES = {"ant": 0.5, "bee": 0.3, "wasp": 0.2}
REFERENCE = Reference(3, 300, SHARES, 0.025, 2000)


def filled(
    labels: list[str], probability: float, novel: float = 0.02, reference: Reference = REFERENCE
) -> AnswerWindow:
    """A window of answers, a share of them novel."""
    window = AnswerWindow(reference)
    window.add_answers([(label, probability) for label in labels])
    window.add_novelty([place < novel * len(labels) for place in range(len(labels))])
    return window


def usual(count: int) -> list[str]:
    """Labels in the mix of the validation photos, shuffled."""
    labels = [label for label, share in SHARES.items() for _ in range(round(share * count))]
    return list(np.random.default_rng(0).permutation(labels))


def test_an_estimate_covers_the_truth_as_often_as_it_says():
    """With calibrated probabilities, the accuracy of the answers is within the 95 % interval; few photos make it wide."""
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        sure = random.uniform(0.6, 1, 400)
        window = AnswerWindow(REFERENCE)
        window.add_answers([("ant", p) for p in sure])
        found = window.state("m", "1").estimate()
        covered += found.low <= (random.random(400) < sure).mean() <= found.high
    assert covered >= 190
    widths = [
        found.high - found.low
        for count, photos in ((1000, 1000), (1000, 50), (50, 1000))
        for found in [filled(usual(count), 0.9, reference=Reference(3, photos)).state("m", "1").estimate()]
    ]
    assert widths[0] < min(widths[1:]) / 2


@pytest.mark.parametrize(
    ("window", "words"),
    [
        (filled(usual(400), 0.9), []),
        (filled(usual(40), 0.9), ["fewer than 50 answers"]),
        (filled(usual(400), 0.9, novel=0.3), ["unlike the training photos"]),
        (filled(["ant"] * 400, 0.9), ["100% of the last 200 answers are ant, 50% in validation"]),
        (filled(usual(400), 0.9, reference=Reference(3)), ["no baseline"]),
        # The change is sudden: the last 200 show it, whatever came before.
        (filled(usual(800) + ["wasp"] * 150, 0.9), ["answers are wasp"]),
    ],
)
def test_a_change_makes_it_unreliable(window: AnswerWindow, words: list[str]):
    """Few answers, novelty, another class mix and a bundle without baseline are each a reason; the usual is none."""
    reasons = window.state("m", "1").estimate().reasons
    assert len(reasons) == len(words)
    assert all(word in reason for word, reason in zip(words, reasons, strict=True))


def test_the_smoothing_of_temperatures_is_undone():
    """A mean probability of the smoothed targets stands for the accuracy that they came from."""
    for accuracy, photos, classes in ((0.9, 50, 2), (0.97, 300, 6), (1.0, 20, 10)):
        doubt = 1 / (photos + 2)
        smooth = accuracy * (1 - doubt) + (1 - accuracy) * doubt / (classes - 1)
        assert unsmoothed(smooth, photos, classes) == pytest.approx(accuracy)


def test_the_windows_of_workers_add_up(tmp_path):
    """What two workers write is read as one window; a worker that has ended does not count."""
    for pid, labels in ((1, ["ant"] * 60), (2, ["bee"] * 40), (3, ["wasp"] * 500)):
        windows = Windows()
        windows.open(("m", "1"), REFERENCE).add_answers([(label, 0.9) for label in labels])
        (tmp_path / f"windows-{pid}.json").write_text(json.dumps([state.to_dict() for state in windows.states()]))
    (state,) = read_windows(tmp_path, lambda: [1, 2, 4])
    assert (state.latest.answers, state.latest.labels) == (100, {"ant": 60, "bee": 40})
    assert state.latest.probability == pytest.approx(90)
    assert merged([state]) == [WindowState.from_dict(state.to_dict())]
    windows.forget(("m", "1"))
    assert windows.states() == []


def test_verdicts_in_the_same_order_give_the_same_counts():
    """The last verdict counts once, live accuracy is that of the latest answers, and versions do not mix."""
    truths = Truths()
    for n in range(RECENT + 100):
        outcome, label = ("wrong", "bee") if n < 100 else ("right", "ant")
        truths.add(Truth(f"{n}", 0, "", "m", 1, "ant", 0.9, outcome, label))
    truths.add(Truth("0", 0, "", "m", 2, "ant", 0.9, "wrong", "bee"))
    truths.add(Truth("999", 0, "x", "m", 1, "ant", 0.9, "unknown", ""))
    one, two = sorted(truths.summaries(), key=lambda each: each.version)
    assert (one.counts, one.replaced) == ({"right": RECENT, "wrong": 100, "unknown": 1}, {"right": 1})
    assert (one.live.accuracy, one.live.answers) == (1.0, RECENT - 1)
    assert one.mistakes(5) == [("ant", "bee", 100)]
    assert (two.counts["wrong"], two.live.accuracy) == (1, 0.0)
