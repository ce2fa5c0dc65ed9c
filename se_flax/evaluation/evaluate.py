"""Loss and accuracy over every example of a split, each counted once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jax.typing import DTypeLike

from se_flax.parallel import replicated, shard_batch, split


def normalize(
    images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: DTypeLike
) -> jax.Array:
    """Returns `(images - mean) / std` in `dtype`.

    Args:
        images: `[B, H, W, C]`, uint8.
        mean, std: a number a channel, in the same 0 to 255 units.
        dtype: of the result.
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    mean, std = (jnp.asarray(v, wide).reshape(1, 1, 1, -1) for v in (mean, std))
    return ((images.astype(wide) - mean) / std).astype(dtype)


def label_rank(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Counts the classes before each label, `[B, C]`, `[B]` to int `[B]`; 0 is the best.

    Equal scores are ranked by class number, as `argmax` does, so a network that says nothing
    scores chance and not 100 %; a label whose score is not a number comes last.
    """
    own = jnp.take_along_axis(scores, labels[:, None], axis=1)
    before = jnp.arange(scores.shape[1])[None] < labels[:, None]
    return ((scores > own) | ((scores == own) & before) | jnp.isnan(own)).sum(1)


def in_top(k: int, scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Tells whether each label is among the k largest scores: `[B, C]`, `[B]` to bool `[B]`."""
    return label_rank(scores, labels) < k


def make_eval_step(
    model: nn.Module, mesh: Mesh, *, mean: Sequence[float], std: Sequence[float]
) -> Callable[..., Any]:
    """Returns the jitted `(variables, batch) -> sums` over the examples whose mask is set.

    The batch holds `image` `[B, H, W, C]` uint8, `label` `[B]` int32 and `mask` `[B]` bool; the
    sums are scalars `loss`, `top1`, `top5`, `examples`.
    """

    def step(variables, batch):
        images = normalize(batch['image'], mean, std, model.dtype)
        logits = model.apply(variables, images, train=False)
        labels, mask = batch['label'], batch['mask']
        log_probs = jax.nn.log_softmax(logits)
        loss = -jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]
        return {
            'loss': jnp.where(mask, loss, 0).sum(),
            'top1': (mask & in_top(1, log_probs, labels)).sum(),
            'top5': (mask & in_top(5, log_probs, labels)).sum(),
            'examples': mask.sum(),
        }

    return jax.jit(
        step, in_shardings=(replicated(mesh), split(mesh)), out_shardings=replicated(mesh)
    )


def evaluate(
    eval_step: Callable[..., Any],
    variables: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
    mesh: Mesh,
) -> dict[str, float]:
    """Returns mean `loss`, `top1` and `top5` (shares, 0 to 1) and the number of `examples`."""
    sums = [eval_step(variables, shard_batch(mesh, batch)) for batch in batches]
    # One fetch at the end: the host never waits for a single batch.
    sums = jax.device_get(sums)
    total = {k: sum(s[k].item() for s in sums) for k in ('loss', 'top1', 'top5', 'examples')}
    examples = total.pop('examples')
    return {**{k: v / examples for k, v in total.items()}, 'examples': examples}
