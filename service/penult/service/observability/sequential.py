"""Evidence that one of two versions is worse, which may be read after every answer.

Only the answers that exactly one version gets right say which is better. If the versions are equally good, each of them
is a fair coin. The evidence is how many times likelier the counts are if the coin favours the other version, on average
over several biases. Its expectation is at most 1 after any number of answers if the version is not worse, so it ever
reaches 20 in at most 5 of 100 such cases (Ville 1939, Robbins 1970, and Ramdas et al., "Game-theoretic statistics and
safe anytime-valid inference", 2023). McNemar's test has this error for one look only.
"""

import math

# The chances that the other version is the right one of the two, and their weights. Five points less accuracy are 0.56
# if one alone is right in 40 % of the answers, 0.67 in 15 %, 0.81 in 8 %.
# bench/shadow_flag.py simulates them.
_CHANCES = ((0.56, 0.2), (0.66, 0.6), (0.8, 0.2))
# Wrong alarms of equal versions, over all looks together.
_WRONG_ALARMS = 0.05
LIMIT = 1 / _WRONG_ALARMS


def evidence_of_worse(only_other: int, only_own: int) -> float:
    """Return the evidence that a version is worse: at least LIMIT is enough, 1 says nothing.

    Args:
        only_other: Answers that only the other version gets right.
        only_own: Answers that only this version gets right.

    """
    logs = [
        math.log(weight) + only_other * math.log(2 * chance) + only_own * math.log(2 * (1 - chance))
        for chance, weight in _CHANCES
    ]
    most = max(logs)
    return math.exp(min(most + math.log(sum(math.exp(each - most) for each in logs)), 700.0))
