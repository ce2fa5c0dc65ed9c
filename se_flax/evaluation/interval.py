"""How far a measured share may lie from the true one."""

import math
from statistics import NormalDist


def wilson(count: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the interval of a binomial share, by Wilson's score (JASA 22, 1927, 209-212).

    It says what other images of the same kind would give for the same network, and nothing of
    another training.

    >>> tuple(round(bound, 4) for bound in wilson(10, 100))
    (0.0552, 0.1744)
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, shrink = count / of, 1 + z * z / of
    middle = (share + z * z / (2 * of)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, middle - half), min(1.0, middle + half)
