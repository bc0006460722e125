"""Two classifiers on the same photos: the exact test, agreement, and many tests at once, against worked examples."""

import numpy as np
import pytest

from penult.export.evaluation.paired import holm, kappa, leads, mcnemar


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    # 2 and 9: 2 * (1 + 11 + 55) / 2**11, the example of R's exact2x2 package. 0 and 6: 2 / 2**6.
    [(2, 9, 134 / 2048), (9, 2, 134 / 2048), (0, 6, 2 / 64), (0, 5, 2 / 32), (4, 4, 1.0), (0, 0, 1.0)],
)
def test_mcnemar_is_exact(only_first: int, only_second: int, p_value: float):
    """The p-value is the sum of binomial probabilities on both sides."""
    assert mcnemar(only_first, only_second) == pytest.approx(p_value, rel=1e-12)


def test_a_group_counts_once():
    """Four photos of a burst that only the second gets right are one lead of the second; a tie in a group is none."""
    first = np.array([1, 0, 0, 0, 0, 1, 0], bool)
    second = np.array([0, 1, 1, 1, 1, 0, 1], bool)
    assert leads(first, second) == (2, 5)
    assert leads(first, second, np.array([0, 1, 1, 1, 1, 2, 2])) == (1, 1)


def test_kappa_of_a_worked_example():
    """Agreement of 35 of 50, where chance gives half of them: 0.4. One class alone has none."""
    pairs = [(0, 0)] * 20 + [(0, 1)] * 5 + [(1, 0)] * 10 + [(1, 1)] * 15
    first, second = np.array(pairs).T
    assert kappa(first, second) == pytest.approx(0.4)
    assert kappa(np.zeros(3, np.int64), np.zeros(3, np.int64)) is None


def test_holm_of_a_worked_example():
    """The smallest of four is multiplied by four, the next by three, and none falls below an earlier one."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
