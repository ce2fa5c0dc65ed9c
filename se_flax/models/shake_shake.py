"""Shake-Shake and Shake-Even networks for CIFAR (arXiv 1705.07485)."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from se_flax.models.network import Layers, Maps, ResidualNetwork
from se_flax.models.registry import register_pair
from se_flax.nn import relu_of_sum, shake


class ShakeBranch(nn.Module):
    """One of a unit's two branches, with SE on it before the mixing.

    ReLU, 3x3, ReLU, 3x3; or, as a bottleneck, 1x1, grouped 3x3, 1x1, all with `filters` channels
    (ResNeXt's form C).
    """

    layers: Layers
    filters: int
    strides: int
    bottleneck: bool

    @nn.compact
    def __call__(self, x):
        conv_norm, squeeze_excite = self.layers.conv_norm, self.layers.squeeze_excite
        if self.bottleneck:
            y = nn.relu(conv_norm(1, x, self.filters))
            y = nn.relu(conv_norm(2, y, self.filters, 3, self.strides, groups=4))
            y = conv_norm(3, squeeze_excite('inside_3x3', y), self.filters)
        else:
            y = nn.relu(conv_norm(1, nn.relu(x), self.filters, 3, self.strides))
            y = conv_norm(2, squeeze_excite('inside_3x3', y), self.filters, 3)
        return squeeze_excite('standard', y)


class ShakeUnit(nn.Module):
    """Two branches, mixed at random in training, beside a shortcut, to `filters` channels."""

    layers: Layers
    filters: int
    strides: int
    bottleneck: bool
    backward: str
    train: bool

    @nn.compact
    def __call__(self, x):
        layers = self.layers
        y = layers.squeeze_excite('pre', x)
        branch = partial(ShakeBranch, layers, self.filters, self.strides, self.bottleneck)
        key = self.make_rng('shake') if self.train else None
        y = shake(branch(name='branch1')(y), branch(name='branch2')(y), key, self.backward)
        y = layers.drop_path(y) + layers.squeeze_excite('identity', self.shortcut(x))
        return layers.squeeze_excite('post', relu_of_sum(y) if self.bottleneck else y)

    def shortcut(self, x):
        if x.shape[-1] == self.filters:
            return x
        layers, half, s = self.layers, self.filters // 2, self.strides
        if self.bottleneck:
            return layers.conv_norm('_proj', x, self.filters, 1, s)
        x = nn.relu(x)
        # The second path is shifted by a pixel to the lower right, so that a stride of 2 does not
        # lose the odd pixels.
        shifted = jnp.pad(x[:, :-1, :-1], ((0, 0), (1, 0), (1, 0), (0, 0)))
        x = layers.conv(half, 1, s, name='conv_proj1')(x)
        shifted = layers.conv(self.filters - half, 1, s, name='conv_proj2')(shifted)
        return layers.norm(name='norm_proj')(jnp.concatenate([x, shifted], -1))


class ShakeResNet(ResidualNetwork):
    """Shake-Shake network for 32x32 images: stages 2, 3 and 4 after a 3x3 stem.

    Training needs the PRNG stream `shake`, from which each image draws a mixture in each unit. SE
    on a branch ('standard', 'inside_3x3') is on both branches, which the paper leaves open.
    """

    stage_sizes: Sequence[int] = (4, 4, 4)
    bottleneck: bool = False  # with ReLUs after the sums, not in the branches
    stem: int = 16  # channels
    width: float = 96  # channels of stage 2; each further stage doubles them
    backward: str = 'shake'  # or 'even', see `se_flax.nn.shake`
    se_stages: Sequence[int] = (2, 3, 4)

    stages = (2, 3, 4)

    def trunk(self, x: jax.Array, train: bool) -> Maps:
        layers = self.layers(train)
        x = layers.conv_norm('_stem', x, self.stem, 3)
        x = nn.relu(x) if self.bottleneck else x
        unit = partial(ShakeUnit, bottleneck=self.bottleneck, backward=self.backward, train=train)
        for stride, y in self.stack(x, 1, unit, train):
            yield stride, y
        if not self.bottleneck:
            yield stride, nn.relu(y)


_shake = partial(register_pair, module=ShakeResNet, input_size=32)
_shake('shake_shake26_2x96d', num_classes=10)
_even = partial(_shake, bottleneck=True, stem=64, width=256, backward='even')
_even('shake_even29_2x4x64d', num_classes=100, stage_sizes=(3, 3, 3))
