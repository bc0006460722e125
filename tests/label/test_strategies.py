"""What is asked next: each strategy's choice, and the mix of choose()."""

from dataclasses import replace

import numpy as np
import pytest
from tests.label import made_up
from tests.label.made_up import situation

from penult.label import strategies
from penult.label.learner import Learner
from penult.label.strategies import CHECK, NEW, RANDOM, STRATEGIES, TYPICAL, UNSURE, choose


@pytest.fixture(scope="module")
def pool() -> tuple[np.ndarray, np.ndarray]:
    """Descriptors and labels of 600 photos."""
    return made_up.photos(600, noise=0.8)


def _random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_typical_photos_stand_for_all_kinds(pool: tuple[np.ndarray, np.ndarray]):
    """Twelve typical photos are nearer to the others than random ones are, and of every class."""
    inputs, labels = pool
    picks = strategies.typical(situation(inputs, labels, []), _random(), 12)
    rows = [pick.row for pick in picks]
    chance = [_random().choice(600, 12, replace=False) for _ in range(20)]

    def near(some: list[int] | np.ndarray) -> float:
        return float((inputs @ inputs[some].T).max(axis=1).mean())

    assert near(rows) > max(map(near, chance))
    assert set(labels[rows].tolist()) == {0, 1, 2, 3}
    more = strategies.typical(situation(inputs, labels, rows), _random(), 12)
    assert not {pick.row for pick in more} & set(rows)


@pytest.mark.parametrize("until", [0, 250])
def test_unsure_photos_are_those_of_small_margins(
    pool: tuple[np.ndarray, np.ndarray], until: int, monkeypatch: pytest.MonkeyPatch
):
    """Both ways of choosing take photos with margins below the usual, and say between which classes."""
    monkeypatch.setattr(strategies, "_VARIANCE_UNTIL", until)
    inputs, labels = pool
    now = situation(inputs, labels, list(range(60)))
    assert now.fit is not None
    picks = strategies.unsure(now, _random(), 10)
    top = np.sort(now.fit.probabilities, axis=1)
    margins = top[:, -1] - top[:, -2]
    assert np.median(margins[[pick.row for pick in picks]]) < np.quantile(margins[60:], 0.35)
    first, second = np.argsort(-now.fit.probabilities[picks[0].row])[:2]
    assert picks[0].reason == f"unsure between {made_up.NAMES[first]} and {made_up.NAMES[second]}"
    assert len({pick.row for pick in picks}) == 10


def test_photos_unlike_anything_labelled_are_new():
    """Photos of a class without a label are picked as new before any other; with its labels, few are."""
    inputs, labels = made_up.photos(400, noise=0.25)
    known = [row for row in range(200) if labels[row] != 3]
    picks = STRATEGIES[NEW](situation(inputs, labels, known), _random(), 5)
    assert [labels[pick.row] for pick in picks] == [3] * 5
    assert picks[0].reason == "unlike anything labelled"
    assert len(STRATEGIES[NEW](situation(inputs, labels, known), _random(), 20)) == 20
    assert len(STRATEGIES[NEW](situation(inputs, labels, list(range(200))), _random(), 20)) < 10


def test_improbable_labels_are_checked_once():
    """A wrong label is checked with both names, until it was looked at again or has changed."""
    inputs, labels = made_up.photos(300, noise=0.3)
    given = labels.copy()
    given[17] = (given[17] + 1) % 4
    now = situation(inputs, given, list(range(100)))
    (pick,) = strategies.check(now, _random(), 3)
    names = made_up.NAMES[given[17]], made_up.NAMES[labels[17]]
    assert (pick.row, pick.kind) == (17, CHECK)
    assert pick.reason == f"check: labelled {names[0]}, looks like {names[1]}"
    assert strategies.check(replace(now, checked=frozenset([17])), _random(), 3) == []
    assert strategies.check(replace(now, labels=labels[now.rows]), _random(), 3) == []


def test_random_photos_extend_the_sample(pool: tuple[np.ndarray, np.ndarray]):
    """Each random pick is the next of the fixed order, so the labelled ones stay a random sample."""
    inputs, labels = pool
    order = Learner(inputs, np.arange(600)).order
    rows = list(range(40))
    picks = strategies.at_random(situation(inputs, labels, rows), _random(), 30)
    assert [pick.row for pick in picks] == [row for row in order.tolist() if row not in rows][:30]
    rows += [pick.row for pick in picks]
    now = situation(inputs, labels, rows)
    assert now.fit is not None
    assert now.fit.is_sample.sum() >= 30


def test_the_mix_has_its_turns(pool: tuple[np.ndarray, np.ndarray]):
    """The first photos are typical; later most are unsure, and random ones come at their turns."""
    inputs, labels = pool
    assert {pick.kind for pick in choose(situation(inputs, labels, []), _random(), 5, 0)} == {TYPICAL}
    picks = choose(situation(inputs, labels, list(range(100))), _random(), 40, 100)
    kinds = [pick.kind for pick in picks]
    assert kinds.count(UNSURE) > 30
    assert kinds.count(RANDOM) == 40 // strategies._RANDOM_EVERY
    assert len({pick.row for pick in picks}) == 40


def test_near_copies_are_not_asked_together(pool: tuple[np.ndarray, np.ndarray]):
    """Of photos that share a group, one is among the picks; a small rest is asked to the last photo."""
    inputs, labels = pool
    groups = np.arange(600) // 5
    now = situation(inputs, labels, list(range(0, 100, 5)), groups)
    picks = choose(now, _random(), 60, 20)
    assert len(picks) == 60
    assert len({int(groups[pick.row]) for pick in picks}) == 60
    rest = replace(now, open=np.array([300, 301, 310]))
    assert {int(groups[pick.row]) for pick in choose(rest, _random(), 5, 20) if pick.kind != CHECK} == {60, 62}
    assert {pick.kind for pick in choose(replace(now, open=np.array([], np.intp)), _random(), 5, 20)} <= {CHECK}


def test_a_strategy_can_be_added(pool: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch):
    """docs/label.md: a function in STRATEGIES under an existing name takes its turns."""
    inputs, labels = pool

    def last(now: strategies.Situation, random: np.random.Generator, count: int) -> list[strategies.Pick]:
        return [strategies.Pick(int(row), UNSURE, "last") for row in now.open[::-1][:count]]

    monkeypatch.setitem(STRATEGIES, UNSURE, last)
    picks = choose(situation(inputs, labels, list(range(100))), _random(), 3, 100)
    assert [pick.row for pick in picks] == [599, 598, 597]


def test_near_copies_of_the_last_photos_wait(pool: tuple[np.ndarray, np.ndarray]):
    """A photo like one that was asked lately is not asked, unless no other is left."""
    inputs = pool[0][:40].copy()
    inputs[20:] = inputs[:20] + 1e-3
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    now = situation(inputs, pool[1][:40], [])
    picks = strategies.choose_apart(now, range(10), _random(), 1, 0)
    assert not {pick.row for pick in picks} & {*range(10), *range(20, 30)}
    only = replace(now, open=np.arange(20, 30))
    assert len(strategies.choose_apart(only, range(10), _random(), 1, 0)) == 1


def test_labels_that_were_not_left_out_are_not_doubted(pool: tuple[np.ndarray, np.ndarray]):
    """Above some thousand labels, some have no answer of a fit without them: these are no suspects."""
    inputs, labels = pool
    rows, given = np.arange(60), labels[:60].copy()
    given[:2] = (given[:2] + 1) % 4
    fit = Learner(inputs, np.arange(600)).fit(rows, given, 4)
    now = dict(zip(rows.tolist(), given.tolist(), strict=True))
    assert [each.row for each in strategies.suspects(fit, now, frozenset({1}))][:1] == [0]
    unknown = fit.left_out.copy()
    unknown[:] = np.nan
    assert list(strategies.suspects(replace(fit, left_out=unknown), now, frozenset())) == []
