"""Batch normalisation over groups of images."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from se_flax.errors import check_multiple


class Affine(struct.PyTreeNode):
    """A map that is not computed yet: `x * factor + offset`, its coefficients an image and channel.

    Times a gate of an image and channel it is another: only the coefficients, `[B, ..., C]` with
    sides of 1, change. Its mean is known without a look at the map. So SE behind BatchNorm needs
    no pass of its own over the map, forward or backward: the gradients of the coefficients are the
    sums that BatchNorm's own gradient is made of.

    Attributes:
        x: `[B, ..., C]`.
        factor: float32 or wider; None is 1.
        offset: the same.
        x_mean: of x over its positions, `[B, ..., C]` with sides of 1, float32 or wider.
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
        """Mean of the map over its positions."""
        x_mean = self.x_mean if self.factor is None else self.x_mean * self.factor
        return x_mean + self.offset

    def __mul__(self, gate: jax.Array) -> 'Affine':
        factor = gate if self.factor is None else self.factor * gate
        return self.replace(factor=factor, offset=self.offset * gate)

    def map(self) -> jax.Array:
        """Returns the map, in x's dtype."""
        x = self.x if self.factor is None else self.x * self.factor.astype(self.dtype)
        return x + self.offset.astype(self.dtype)


# Both are linear and each is computed as one array in one direction, where it is a sum: on a GPU
# that is one kernel for two.
@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _of_groups(moments, size: int):
    """Averages each `[B, C]` over groups: `[groups, C]`."""
    return tuple(_means(jnp.stack(moments), size))


@_of_groups.defjvp
def _of_groups_jvp(size, primals, tangents):
    return _of_groups(*primals, size), tuple(_means(v, size) for v in tangents[0])


def _means(x, size):
    return x.reshape(*x.shape[:-2], -1, size, x.shape[-1]).mean(-2)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _of_images(coefficients, size: int):
    """Repeats each `[groups, C]` for the images: `[B, C]`."""
    return tuple(jnp.repeat(v, size, axis=0) for v in coefficients)


@_of_images.defjvp
def _of_images_jvp(size, primals, tangents):
    both = jnp.repeat(jnp.stack(tangents[0]), size, axis=1)
    return _of_images(*primals, size), tuple(v[0] for v in jnp.split(both, 2))


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
        use_running_average: True in evaluation; a boolean array is the choice at run time.
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
        """Returns the normalised map before it is computed."""
        x = x.astype(self.dtype)
        batch, channels = x.shape[0], x.shape[-1]
        wide = jnp.promote_types(self.dtype, jnp.float32)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels, wide)
        running_var = self.variable('batch_stats', 'var', jnp.ones, channels, wide)
        scale = self.param('scale', self.scale_init, (channels,), wide)
        bias = self.param('bias', nn.initializers.zeros, (channels,), wide)

        # Each image's own moments first, [B, C]: SE's squeeze is made of them, too.
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

        # One multiply and one add for a value, coefficients on [groups, C], where float32 is free.
        factor = scale[None] / jnp.sqrt(var + self.epsilon)
        offset = bias[None] - mean * factor
        factor, offset = _of_images((factor, offset), batch // len(factor))
        shape = batch, *(1 for _ in positions), channels
        return Affine(x, *(v.reshape(shape) for v in (factor, offset, means)))


class FoldedNorm(nn.Module):
    """BatchNorm of a trained network, as a factor and an offset (`se_flax.fold_batch_norm`).

    Takes `[B, ..., C]`, returns the same shape in `dtype`.

    Attributes:
        scaled: False where the convolution before it has the factor.
        scale_init: of the factor, as BatchNorm's.
        dtype: of the result; both are float32 or wider.
    """

    scaled: bool = True
    scale_init: Callable[..., Any] = nn.initializers.ones
    dtype: Any = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.affine(x).map()

    @nn.compact
    def affine(self, x: jax.Array) -> Affine:
        """Returns the map before it is computed."""
        x, channels = x.astype(self.dtype), x.shape[-1:]
        wide = jnp.promote_types(self.dtype, jnp.float32)
        shape = (1,) * (x.ndim - 1) + channels
        offset = self.param('bias', nn.initializers.zeros, channels, wide).reshape(shape)
        factor = None
        if self.scaled:
            factor = self.param('scale', self.scale_init, channels, wide).reshape(shape)
        mean = x.astype(wide).mean(tuple(range(1, x.ndim - 1)), keepdims=True)
        return Affine(x, factor, offset, mean)
