"""Functions of scores and pixels against NumPy, and Wilson's interval against a table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from se_flax.evaluation import in_top, normalize, wilson

pytestmark = pytest.mark.quick

CLASSES = 7


@given(
    logits=hnp.arrays(np.float32, (4, CLASSES), elements=st.integers(-2, 2)),
    labels=hnp.arrays(np.int32, 4, elements=st.integers(0, CLASSES - 1)),
    k=st.integers(1, CLASSES + 1),
)
@settings(deadline=None)
def test_in_top_equals_a_stable_argsort(logits, labels, k):
    """With many ties, which go to the lower class number."""
    ranked = np.argsort(-logits, axis=1, kind='stable')[:, :k]
    want = (ranked == labels[:, None]).any(1)
    np.testing.assert_array_equal(in_top(k, jnp.asarray(logits), jnp.asarray(labels)), want)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32, jnp.float64])
def test_normalize_rounds_once(dtype):
    """Against float64: computed in float32 or wider, whatever the result's dtype."""
    pixels = {'mean': (123.7, 110.3, 99.1), 'std': (58.4, 57.1, 43.3)}  # no short binary fractions
    images = np.arange(256 * 3).reshape(16, 16, 1, 3).astype(np.uint8)
    want = (images - np.array(pixels['mean'])) / pixels['std']
    with jax.enable_x64(True):
        got = normalize(images, dtype=dtype, **pixels)
    assert got.dtype == dtype
    wide = jnp.finfo(jnp.promote_types(dtype, jnp.float32)).eps
    # Rounding to the dtype is half an eps; before that a difference of up to 5 and its quotient,
    # three roundings of half an eps of 5 each.
    tolerance = {'rtol': jnp.finfo(dtype).eps, 'atol': 8 * wide}
    np.testing.assert_allclose(np.asarray(got, np.float64), want, **tolerance)


def test_wilson_equals_newcombes_table():
    """Newcombe, Statistics in Medicine 17 (1998) 857-872, Table I, method 3: 81 of 263."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
