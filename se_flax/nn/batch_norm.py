"""Batch normalization over groups of images."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from se_flax.errors import check_multiple


class Affine(struct.PyTreeNode):
    """The map `x * factor + offset`, not yet computed.

    A gate changes only the coefficients, and the map's mean follows from x's. SE after BatchNorm
    therefore needs no pass of its own over the map, forward or backward.

    Attributes:
        x: `[B, ..., C]`.
        factor, offset, x_mean: `[B, 1, ..., 1, C]` in float32 or wider; a factor of None is 1, and
            x_mean is the mean of x over its positions.
    """

    x: jax.Array
    factor: jax.Array | None
    offset: jax.Array
    x_mean: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape

    @property
    def dtype(self) -> jnp.dtype:
        return self.x.dtype

    @property
    def mean(self) -> jax.Array:
        x_mean = self.x_mean if self.factor is None else self.x_mean * self.factor
        return x_mean + self.offset

    def __mul__(self, gate: jax.Array) -> 'Affine':
        factor = gate if self.factor is None else self.factor * gate
        return self.replace(factor=factor, offset=self.offset * gate)

    def map(self) -> jax.Array:
        """Returns the map, in x's dtype."""
        x = self.x if self.factor is None else self.x * self.factor.astype(self.dtype)
        return x + self.offset.astype(self.dtype)


# Two linear functions that sum over images, one forward, the other in its gradient. There the two
# arrays are stacked, so that a GPU needs one kernel instead of two.
@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _of_groups(moments, size: int):
    """Averages each `[B, C]` over groups of images, to `[groups, C]`."""
    return tuple(_means(jnp.stack(moments), size))


def _means(x, size):
    return x.reshape(*x.shape[:-2], -1, size, x.shape[-1]).mean(-2)


@_of_groups.defjvp
def _of_groups_jvp(size, primals, tangents):
    return _of_groups(*primals, size), tuple(_means(v, size) for v in tangents[0])


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _of_images(coefficients, size: int):
    """Repeats each `[groups, C]` for the images of its group, to `[B, C]`."""
    return tuple(jnp.repeat(v, size, axis=0) for v in coefficients)


@_of_images.defjvp
def _of_images_jvp(size, primals, tangents):
    both = jnp.repeat(jnp.stack(tangents[0]), size, axis=1)
    return _of_images(*primals, size), tuple(v[0] for v in jnp.split(both, 2))


class BatchNorm(nn.Module):
    """Normalizes each channel by its statistics over a group of images (arXiv 1502.03167).

    From `[B, ..., C]` to the same shape in `dtype`. Every `group_size` consecutive images have
    their own statistics, as the 32 images of each of the paper's GPUs had. The result does not
    depend on the number of devices, and if each device holds whole groups, no layer communicates.

    Statistics are float32 or wider; the running ones average the groups' means and (biased)
    variances. Raises UserError if `group_size` does not divide B.

    Attributes:
        use_running_average: True in evaluation; a boolean array chooses at run time.
        group_size: None is the whole batch, under `jit` over a mesh the global one.
        momentum: weight of the old running statistics (PyTorch's 0.1 is 0.9 here).
        epsilon, scale_init, dtype: as in `flax.linen.BatchNorm`.

    >>> import jax, jax.numpy as jnp
    >>> norm = BatchNorm(use_running_average=False, group_size=2)
    >>> variables = norm.init(jax.random.key(0), jnp.ones((4, 7, 7, 3)))
    >>> jax.tree.map(jnp.shape, variables['batch_stats'])
    {'mean': (3,), 'var': (3,)}
    """

    use_running_average: bool | jax.Array
    group_size: int | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Callable[..., Any] = nn.initializers.ones
    dtype: Any = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.affine(x).map()

    @nn.compact
    def affine(self, x: jax.Array) -> Affine:
        """Returns the normalized map, not yet computed."""
        x = x.astype(self.dtype)
        batch, channels = x.shape[0], x.shape[-1]
        wide = jnp.promote_types(self.dtype, jnp.float32)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels, wide)
        running_var = self.variable('batch_stats', 'var', jnp.ones, channels, wide)
        scale = self.param('scale', self.scale_init, (channels,), wide)
        bias = self.param('bias', nn.initializers.zeros, (channels,), wide)

        # Moments of each image, [B, C], first: SE's squeeze needs them, too.
        values, positions = x.astype(wide), tuple(range(1, x.ndim - 1))
        means = values.mean(positions)
        running = running_mean.value[None], running_var.value[None]
        if self.use_running_average is True:
            mean, var = running
        else:
            size = self.group_size or batch
            check_multiple('batch', batch, 'group_size', size)
            # One pass over the map; rounding can leave a constant channel slightly below 0.
            mean, squares = _of_groups((means, (values * values).mean(positions)), size)
            var = jnp.maximum(squares - mean * mean, 0)
            if not self.is_initializing():
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean.mean(0)
                running_var.value = keep * running_var.value + (1 - keep) * var.mean(0)
            if self.use_running_average is not False:
                mean = jnp.where(self.use_running_average, running[0], mean)
                var = jnp.where(self.use_running_average, running[1], var)

        # One multiply and one add per value; coefficients are [groups, C], where float32 is free.
        factor = scale[None] / jnp.sqrt(var + self.epsilon)
        offset = bias[None] - mean * factor
        factor, offset = _of_images((factor, offset), batch // len(factor))
        shape = batch, *(1 for _ in positions), channels
        return Affine(x, *(v.reshape(shape) for v in (factor, offset, means)))


class FoldedNorm(nn.Module):
    """BatchNorm of a trained network as a factor and an offset, see `se_flax.fold_batch_norm`.

    Attributes:
        scaled: False if the factor is part of the convolution before it.
        scale_init, dtype: as in `BatchNorm`.
    """

    scaled: bool = True
    scale_init: Callable[..., Any] = nn.initializers.ones
    dtype: Any = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.affine(x).map()

    @nn.compact
    def affine(self, x: jax.Array) -> Affine:
        """Returns the map, not yet computed."""
        x, channels = x.astype(self.dtype), x.shape[-1:]
        wide = jnp.promote_types(self.dtype, jnp.float32)
        shape = (1,) * (x.ndim - 1) + channels
        offset = self.param('bias', nn.initializers.zeros, channels, wide).reshape(shape)
        factor = None
        if self.scaled:
            factor = self.param('scale', self.scale_init, channels, wide).reshape(shape)
        mean = x.astype(wide).mean(tuple(range(1, x.ndim - 1)), keepdims=True)
        return Affine(x, factor, offset, mean)
