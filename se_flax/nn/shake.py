"""Shake-Shake's mixing of two branches."""

import jax
import jax.numpy as jnp
from jax import lax

from se_flax.errors import check_known

BACKWARD = ('shake', 'even')


def shake(a: jax.Array, b: jax.Array, key: jax.Array | None, backward: str = 'shake') -> jax.Array:
    """Mixes two maps with a random share for each image (arXiv 1705.07485).

    Forward `alpha a + (1 - alpha) b`, with alpha uniform in [0, 1). The gradient passes as if the
    shares had been `beta` and `1 - beta`: another draw ('shake'), or one half ('even').

    Args:
        a, b: `[B, H, W, C]`.
        key: a PRNG key; None, in evaluation, gives the mean of a and b.
        backward: 'shake' or 'even'.

    Returns:
        `[B, H, W, C]` in the dtype of a and b.

    Raises:
        UserError: for another `backward`.
    """
    check_known('backward', backward, BACKWARD)
    if key is None:
        return (a + b) / 2
    # [2, B, 1, 1, 1]; float32 draws, as bfloat16 has 256 values in [0.5, 1).
    alpha, beta = jax.random.uniform(key, (2, len(a), 1, 1, 1)).astype(a.dtype)
    if backward == 'even':
        beta = jnp.full_like(beta, 0.5)
    seen = beta * a + (1 - beta) * b
    return seen + lax.stop_gradient(alpha * a + (1 - alpha) * b - seen)
