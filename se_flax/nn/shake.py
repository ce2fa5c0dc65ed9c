"""Shake-Shake's mixing of two branches."""

import jax
import jax.numpy as jnp
from jax import lax

from se_flax.errors import check_known

BACKWARD = ('shake', 'even')


def shake(a: jax.Array, b: jax.Array, key: jax.Array | None, backward: str = 'shake') -> jax.Array:
    """Mixes two `[B, H, W, C]` maps with random weights per image (arXiv 1705.07485).

    Returns `alpha a + (1 - alpha) b` with alpha uniform in [0, 1), or the mean if `key` is None, as
    in evaluation. The gradient uses beta instead, which is another draw with `backward='shake'` and
    one half with 'even'; raises UserError for any other value.
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
