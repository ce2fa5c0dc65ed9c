"""Functions that training and evaluation share, from pixels to accuracy."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def normalize(
    images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: DTypeLike
) -> jax.Array:
    """Returns `(images - mean) / std` in `dtype`, of uint8 `[B, H, W, C]`, `[C]` and `[C]`."""
    wide = jnp.promote_types(dtype, jnp.float32)
    mean, std = (jnp.asarray(v, wide).reshape(1, 1, 1, -1) for v in (mean, std))
    return ((images.astype(wide) - mean) / std).astype(dtype)


def label_rank(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the rank of each label among `[B, C]` scores, int `[B]`; 0 is the highest.

    Ties rank by class number, as in `argmax`, so constant output scores chance and not 100 %. A
    label whose score is NaN ranks last.
    """
    own = jnp.take_along_axis(scores, labels[:, None], axis=1)
    before = jnp.arange(scores.shape[1])[None] < labels[:, None]
    return ((scores > own) | ((scores == own) & before) | jnp.isnan(own)).sum(1)


def in_top(k: int, scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns whether each label is among the k highest scores: `[B, C]`, `[B]` to bool `[B]`."""
    return label_rank(scores, labels) < k


def wilson(count: int, of: int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of the proportion `count / of` (JASA 22, 1927, 209-212).

    It covers the choice of images for a fixed network, not the variation between trainings.

    >>> tuple(round(bound, 4) for bound in wilson(10, 100))
    (0.0552, 0.1744)
    """
    from scipy.stats import binomtest  # slow to import

    low, high = binomtest(count, of).proportion_ci(0.95, method='wilson')
    return float(low), float(high)
