"""Batch normalisation over groups of images."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from se_flax.errors import check_multiple


class BatchNorm(nn.Module):
    """Normalises each channel by its statistics over a group of images (arXiv 1502.03167).

    `y = scale (x - mean) / sqrt(var + epsilon) + bias`. Under `jit` over a mesh the batch is the
    *global* batch; with `group_size=g` images `[0, g)`, `[g, 2g)`, ... have statistics of their
    own, as the GPUs of the paper had (32 images each). The result then depends on the recipe and
    not on the number of devices, and where each device holds whole groups no layer communicates.

    Takes `[B, ..., C]`, returns the same shape in `dtype`. Statistics are float32 or wider. The
    running ones follow the mean over the groups of each group's mean and (biased) variance.
    Raises UserError where `group_size` does not divide B.

    Attributes:
        use_running_average: True in evaluation.
        group_size: images that share statistics; None is the whole (global) batch.
        momentum: share of the old running statistics kept at a step (PyTorch's 0.1 is 0.9 here).
        epsilon: added to the variance.
        scale_init: initialiser of `scale`.
        dtype: of the result.

    >>> import jax, jax.numpy as jnp
    >>> norm = BatchNorm(use_running_average=False, group_size=2)
    >>> variables = norm.init(jax.random.key(0), jnp.ones((4, 7, 7, 3)))
    >>> jax.tree.map(jnp.shape, variables['batch_stats'])
    {'mean': (3,), 'var': (3,)}
    """

    use_running_average: bool
    group_size: int | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Callable[..., Any] = nn.initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        channels = (x.shape[-1],)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels, wide)
        running_var = self.variable('batch_stats', 'var', jnp.ones, channels, wide)
        scale = self.param('scale', self.scale_init, channels, wide)
        bias = self.param('bias', nn.initializers.zeros, channels, wide)

        # [groups, values of a channel in the group, C]
        groups = 1
        if not self.use_running_average:
            size = self.group_size or x.shape[0]
            check_multiple('batch', x.shape[0], 'group_size', size)
            groups = x.shape[0] // size
        grouped = x.reshape(groups, -1, *channels).astype(self.dtype)

        if self.use_running_average:
            mean, var = running_mean.value.reshape(1, -1), running_var.value.reshape(1, -1)
        else:
            values = grouped.astype(wide)
            mean = values.mean(1)
            # One pass over the map; rounding can leave a constant channel slightly below 0.
            var = jnp.maximum((values * values).mean(1) - mean * mean, 0)
            if not self.is_initializing():
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean.mean(0)
                running_var.value = keep * running_var.value + (1 - keep) * var.mean(0)

        # Folded into one multiply and one add on [groups, C], where float32 is free.
        factor = scale.reshape(1, -1) / jnp.sqrt(var + self.epsilon)
        offset = bias.reshape(1, -1) - mean * factor
        factor, offset = (v.astype(self.dtype)[:, None] for v in (factor, offset))
        return (grouped * factor + offset).reshape(x.shape)
