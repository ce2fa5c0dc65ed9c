"""The statistics of studies, against SciPy's, published values, and simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from se_flax.analysis.statistics import (
    detectable,
    deviation_interval,
    holm,
    over_images,
    paired,
    power,
    seeds_needed,
)

pytestmark = pytest.mark.quick


@given(st.integers(2, 8), st.integers(0, 10**6))
def test_paired_is_the_t_test_of_the_differences(seeds, draw):
    rng = np.random.default_rng(draw)
    ours = dict(enumerate(rng.uniform(0, 100, seeds)))
    theirs = {seed: error + rng.normal(1, 2) for seed, error in ours.items()}
    test = stats.ttest_rel(list(ours.values()), list(theirs.values()))
    d = np.array([ours[seed] - theirs[seed] for seed in ours])
    low, high = stats.t.interval(0.95, seeds - 1, d.mean(), stats.sem(d))
    got = paired(ours, {**theirs, 99: 5.0})  # a seed that only one of them has
    found = [got[name] for name in ('difference', 'low', 'high')]
    np.testing.assert_allclose(found, (d.mean(), low, high), atol=2e-3)  # given to three digits
    np.testing.assert_allclose(got['p'], test.pvalue, rtol=1e-3, atol=1e-4)  # of rounded errors
    np.testing.assert_allclose(got['differences'], d, atol=1e-4)


def test_a_tie_is_no_improvement():
    assert paired({0: 1.0, 1: 2.0, 2: 2.0}, {0: 2.0, 1: 2.0, 2: 1.0})['improved'] == 1


def test_holm_as_r_does_it():
    """`p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")`, and in another order."""
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == [0.05, 0.08, 0.09, 0.09, 0.09]
    assert holm([0.05, 0.01, 0.03, 0.02, 0.04]) == [0.09, 0.05, 0.09, 0.08, 0.09]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_closed_testing_with_bonferroni(p):
    """A hypothesis is rejected if every set of hypotheses that contains it is."""
    sets = [s for n in range(len(p)) for s in itertools.combinations(range(len(p)), n + 1)]
    worst = [max(len(s) * min(p[j] for j in s) for s in sets if i in s) for i in range(len(p))]
    np.testing.assert_allclose(holm(p), np.minimum(worst, 1), rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize(('effect', 'seeds'), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_seeds_needed_are_those_of_the_power_tables(effect, seeds):
    """Pairs for a power of 0.8 at 5 %, two-sided, as in G*Power."""
    assert seeds_needed(1.0, effect) == seeds
    assert seeds_needed(0.3, 0.3 * effect) == seeds
    assert power(effect, seeds) >= 0.8 > power(effect, seeds - 1)
    assert detectable(2.0, seeds) < 2 * effect < detectable(2.0, seeds - 1)


@pytest.mark.parametrize(('seeds', 'level'), [(3, 0.05), (10, 0.05), (5, 0.01)])
def test_a_detectable_difference_is_found_four_times_of_five(seeds, level):
    rng = np.random.default_rng(0)
    d = rng.normal(detectable(0.3, seeds, level), 0.3, (20_000, seeds))
    assert np.mean(stats.ttest_1samp(d, 0, axis=1).pvalue < level) == pytest.approx(0.8, abs=0.01)


def test_the_interval_of_a_deviation_has_it_19_times_of_20():
    deviations = np.random.default_rng(0).normal(0, 0.3, (20_000, 4)).std(axis=1, ddof=1)
    low, high = np.transpose([deviation_interval(s, 4) for s in deviations[:4000]])
    assert np.mean((low < 0.3) & (high > 0.3)) == pytest.approx(0.95, abs=0.012)


def test_over_images_is_scipys_bootstrap():
    rng = np.random.default_rng(0)
    hard = rng.uniform(size=2000)  # both are wrong about the same images
    right, baseline = (hard + rng.normal(0, 0.1, (3, 2000)) > level for level in (0.12, 0.1))
    means = 100 * (baseline.mean(0) - right.mean(0))
    options = {'n_resamples': 4000, 'batch': 100, 'method': 'percentile', 'rng': rng}
    theirs = stats.bootstrap((means,), np.mean, **options).confidence_interval
    ours = over_images(right, baseline)
    np.testing.assert_allclose(ours, theirs, atol=0.05)  # a deviation of 0.2
    assert ours == over_images(right, baseline)
    assert over_images(baseline, right) == pytest.approx([-end for end in ours[::-1]], abs=0.05)
    assert over_images(right, right) == (0, 0)
