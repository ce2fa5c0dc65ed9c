"""Wilson's interval against SciPy's, and a published example."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from se_flax.evaluation import wilson


@given(of=st.integers(1, 60_000), share=st.floats(0, 1), confidence=st.floats(0.5, 0.999))
def test_wilson_equals_scipy(of, share, confidence):
    count = round(share * of)
    want = binomtest(count, of).proportion_ci(confidence, method='wilson')
    assert wilson(count, of, confidence) == pytest.approx(tuple(want), abs=1e-12)


def test_wilson_equals_newcombes_table():
    """Newcombe, Statistics in Medicine 17 (1998) 857-872, Table I, method 3: 81 of 263."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
