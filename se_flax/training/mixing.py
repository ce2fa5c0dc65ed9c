"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899), on the device.

Each BatchNorm group is mixed for itself, with one draw: image i of n with image n - 1 - i, which is
a random one as the order of examples is (timm does the same with the batch of each GPU). So the
result does not depend on the number of devices, and whole groups on a device do not communicate.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from se_flax.errors import check_multiple


class Mixture(NamedTuple):
    """How the images of each of G groups are mixed with their partners.

    Attributes:
        weight: `[G]`, the weight of an image outside of the box; 1 for CutMix.
        box: int `[G, 4]`, first and last + 1 of rows, then of columns, where only the partner is
            seen; empty for mixup.
    """

    weight: jax.Array
    box: jax.Array


class Mixing(NamedTuple):
    """What mixtures are drawn.

    Attributes:
        mixup, cutmix: alpha of the Beta(alpha, alpha) distribution of weights; 0 is never.
        switch_prob: the probability of CutMix where both are on.
        group_size: images that are mixed among each other; None is the whole batch.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    switch_prob: float = 0.5
    group_size: int | None = None

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> Mixture:
        """Draws how images of the shape `[B, H, W, C]` are mixed; group_size must divide B."""
        batch, height, width, _ = shape
        size = self.group_size or batch
        check_multiple('batch', batch, 'group_size', size)
        which, weights, y, x = jax.random.split(key, 4)
        count = (batch // size,)
        switch = self.switch_prob if self.mixup and self.cutmix else float(self.cutmix > 0)
        cut = jax.random.bernoulli(which, switch, count)
        alpha = jnp.where(cut, self.cutmix, self.mixup)
        weight = jax.random.beta(weights, alpha, alpha, count)
        rows = cut_edges(jax.random.randint(y, count, 0, height), weight, height)
        columns = cut_edges(jax.random.randint(x, count, 0, width), weight, width)
        box = jnp.where(cut[:, None], jnp.stack([*rows, *columns], -1), 0)
        return Mixture(jnp.where(cut, 1, weight), box)


def cut_edges(middle: jax.Array, weight: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Returns CutMix's box along an axis: `sqrt(1 - weight)` of its length, clipped to the image.

    That is the paper's equation 2, rounded down to whole pixels.
    """
    side = jnp.floor(length * jnp.sqrt(1 - weight)).astype(int)
    first, last = middle - side // 2, middle + (side + 1) // 2
    return jnp.maximum(first, 0), jnp.minimum(last, length)


def mix(
    images: jax.Array, labels: jax.Array, mixture: Mixture
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns mixed images, the labels of the partners, and each image's own share.

    From `[B, H, W, C]` and `[B]` to `[B, H, W, C]` in JAX's default float, `[B]` and `[B]`.
    """
    height, width = images.shape[1:3]
    top, bottom, left, right = (edge[:, None] for edge in mixture.box.T)
    y, x = jnp.arange(height)[None], jnp.arange(width)[None]
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    inside = rows[:, None, :, None, None] & columns[:, None, None, :, None]
    weight = jnp.where(inside, 0, mixture.weight.reshape(-1, 1, 1, 1, 1))

    def by_group(values):
        return values.reshape(len(mixture.weight), -1, *values.shape[1:])

    own, own_labels = by_group(images.astype(float)), by_group(labels)
    mixed = weight * own + (1 - weight) * own[:, ::-1]
    share = jnp.broadcast_to(weight.mean((2, 3, 4), float), own_labels.shape)
    return mixed.reshape(images.shape), own_labels[:, ::-1].reshape(-1), share.reshape(-1)
