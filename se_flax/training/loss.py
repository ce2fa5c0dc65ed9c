"""The losses of recipes."""

import jax
import optax

LOSSES = {'softmax': optax.softmax_cross_entropy, 'bce': optax.sigmoid_binary_cross_entropy}


def mean_loss(
    logits: jax.Array, targets: jax.Array, *, loss: str = 'softmax', bce_threshold: float = 0.0
) -> jax.Array:
    """Returns the mean of one of LOSSES over images, a scalar; both arrays are `[B, C]`.

    'bce' is binary cross-entropy, averaged over the classes too, as in timm (arXiv 2110.00476).
    With a `bce_threshold` its targets are 1 above the threshold, else 0.
    """
    if loss == 'bce' and bce_threshold:
        targets = (targets > bce_threshold).astype(targets.dtype)
    return LOSSES[loss](logits, targets).mean()
