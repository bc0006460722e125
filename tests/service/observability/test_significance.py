"""The arrows of the status page: none from chance, one from a clear change."""

import numpy as np
import pytest

from penult.service.observability.significance import LESS, MORE, trend


@pytest.mark.parametrize(
    ("share", "answers", "usual", "photos", "expected"),
    [
        (1.0, 2, 0.1, 200, None),  # two answers are no trend, whatever they say
        (1.0, 19, 0.1, 200, None),
        (1.0, 20, 0.1, 200, MORE),
        (0.0, 1000, 0.5, 200, LESS),
        (0.55, 1000, 0.5, 200, None),
        (0.65, 1000, 0.5, 2000, MORE),
        (0.65, 1000, 0.5, 20, None),  # twenty validation photos do not say what is usual
        (0.03, 100, 0.0, 36, None),
        (0.3, 100, 0.0, 36, None),
        (0.4, 100, 0.0, 100, MORE),
        (0.9, 1000, 0.5, None, MORE),
        (0.65, 1000, 0.5, None, None),  # how many photos is not known: they may be few
        (None, 1000, 0.5, 200, None),
        (0.5, 1000, None, 200, None),
    ],
)
def test_an_arrow_needs_more_than_chance(share, answers, usual, photos, expected):
    """More or less where the difference is far beyond chance, and nothing otherwise."""
    assert trend(share, answers, usual, photos, 12) == expected


@pytest.mark.parametrize(
    ("shares", "answers", "photos"), [([0.5, 0.5], 25, 36), ([0.02] * 50, 200, 100), ([0.9, 0.1], 60, 300)]
)
def test_chance_alone_hardly_ever_makes_an_arrow(shares, answers, photos):
    """Of three hundred looks at answers that are like the validation photos, at most two have any arrow."""
    generator, looks = np.random.default_rng(0), 300
    wrong = 0
    for _ in range(looks):
        usual, lately = generator.multinomial(photos, shares) / photos, generator.multinomial(answers, shares) / answers
        wrong += any(
            trend(*each, len(shares))
            for each in zip(lately, [answers] * len(shares), usual, [photos] * len(shares), strict=True)
        )
    assert wrong <= 2


def test_the_more_rows_the_more_an_arrow_needs():
    """What would stand out alone does not among ten thousand classes."""
    assert trend(0.14, 300, 0.05, 300, 1) == MORE
    assert trend(0.14, 300, 0.05, 300, 10_000) is None
