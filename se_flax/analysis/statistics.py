"""The statistics of studies: differences paired by seed or by image, and what a study could see."""

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize, stats

LEVEL, POWER = 0.05, 0.8


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> dict[str, Any]:
    """Compares errors in %, by seed, over the n seeds that both have.

    With d the differences, in points, and s their standard deviation (n - 1): `differences` is d,
    `difference` mean(d), `deviation` s, `improved` how many are below 0 (a tie is not); `low` and
    `high` are mean(d) ± t s / √n, t the 97.5 % quantile of Student's distribution with n - 1
    degrees of freedom; `p` is of the two-sided paired t test; `detectable` is that of `detectable`.
    With one seed or equal differences, what needs s is None.

    >>> found = paired({0: 11.0, 1: 12.2, 2: 10.9}, {0: 10.0, 1: 11.0, 2: 10.1})
    >>> [found[name] for name in ('difference', 'low', 'high', 'p', 'improved', 'detectable')]
    [1.0, 0.503, 1.497, 0.01307, 0, 0.653]
    """
    d = np.array([values[seed] - baseline[seed] for seed in values if seed in baseline]).round(4)
    names = ('difference', 'deviation', 'low', 'high', 'p', 'improved', 'detectable')
    found: dict[str, Any] = {'differences': d.tolist()} | dict.fromkeys(names)
    if len(d):
        found |= {'difference': round(float(d.mean()), 3), 'improved': int((d < 0).sum())}
    if len(d) > 1 and np.ptp(d):  # Student's t divides by the deviation
        test, deviation = stats.ttest_1samp(d, 0), float(d.std(ddof=1))
        bounds = *test.confidence_interval(0.95), deviation, detectable(deviation, len(d))
        rounded = (round(float(bound), 3) for bound in bounds)
        found |= zip(('low', 'high', 'deviation', 'detectable'), rounded, strict=True)
        found['p'] = float(f'{test.pvalue:.4g}')
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p values corrected for their number m, by Holm's method.

    The i-th smallest, i from 0, becomes the largest of (m - j) p_j over j <= i, at most 1. The
    probability of any p below 0.05 by chance is then at most 0.05.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    return [float(f'{value:.4g}') for value in np.minimum(corrected, 1)]


def power(effect: float, seeds: int, level: float = LEVEL) -> float:
    """Returns how probable p < level is, in the two-sided paired t test of n `seeds`.

    `effect` is the true difference over the deviation of the differences. The square of t has the
    noncentral F distribution with 1 and n - 1 degrees of freedom and noncentrality n effect².

    >>> round(power(1.0, 10), 3)
    0.803
    """
    threshold = stats.f.isf(level, 1, seeds - 1)
    return float(stats.ncf.sf(threshold, 1, seeds - 1, seeds * effect**2))


def detectable(deviation: float, seeds: int, level: float = LEVEL) -> float:
    """Returns the true difference that is found with a `power` of 0.8, in the unit of `deviation`.

    >>> round(detectable(0.3, 10), 3)
    0.299
    """
    most = 2.0
    while power(most, seeds, level) < POWER:
        most *= 2
    return deviation * optimize.brentq(lambda e: power(e, seeds, level) - POWER, 0, most)


def seeds_needed(deviation: float, difference: float, level: float = LEVEL) -> int:
    """Returns the smallest number of seeds that finds a true difference with a `power` of 0.8.

    >>> seeds_needed(deviation=0.3, difference=0.3)
    10
    """

    def enough(seeds: int) -> bool:
        return power(difference / deviation, seeds, level) >= POWER

    most = 2
    while not enough(most):
        most *= 2
    return bisect.bisect_left(range(most + 1), True, lo=2, key=enough)


def deviation_interval(deviation: float, seeds: int) -> tuple[float, float]:
    """Returns the 95 % interval s √((n - 1) / χ²) of a standard deviation s of n seeds.

    χ² are the 97.5 and 2.5 % quantiles with n - 1 degrees of freedom.

    >>> [round(bound, 2) for bound in deviation_interval(1.0, 3)]
    [0.52, 6.28]
    """
    low, high = deviation * np.sqrt((seeds - 1) / stats.chi2.ppf([0.975, 0.025], seeds - 1))
    return float(low), float(high)


def over_images(right: np.ndarray, baseline: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % interval of the difference of the errors, in points, over images.

    `right` and `baseline` are bool `[seeds, N]`: whether a network is right about an image. The
    networks are held fixed; the N images are drawn anew, with replacement (a percentile bootstrap
    of the mean over seeds and images).

    >>> over_images(np.array([[True] * 90 + [False] * 10]), np.array([[True] * 100]))
    (5.0, 16.0)
    """
    differences = np.mean(baseline.astype(int) - right, axis=0)
    # Equal differences are exchangeable: only how often each value is drawn matters.
    values, counts = np.unique(differences, return_counts=True)
    images = len(differences)
    draws = np.random.default_rng(0).multinomial(images, counts / images, 10_000)
    low, high = np.percentile(100 * (draws @ values) / images, [2.5, 97.5])
    return round(float(low), 3), round(float(high), 3)
