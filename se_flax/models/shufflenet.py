"""ShuffleNet 1x with 3 groups (arXiv 1707.01083)."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from se_flax.models.network import Layers, Maps, ResidualNetwork
from se_flax.models.registry import register_pair
from se_flax.nn import SqueezeExcite, avg_pool, max_pool, relu_of_sum

FEATURES = {2: 240, 3: 480, 4: 960}  # channels out of a stage


def channel_shuffle(x, groups: int):
    """Interleaves the channels of the groups, so that each of the next groups sees all."""
    return x.reshape(*x.shape[:-1], groups, -1).swapaxes(-1, -2).reshape(x.shape)


class ShuffleUnit(nn.Module):
    """1x1, shuffle, depthwise 3x3, 1x1 beside the input (Figure 2 b, c), to `features` channels.

    With stride 2 the averaged input is concatenated, so the branch has only the other channels.
    """

    layers: Layers
    features: int
    strides: int
    groups: int
    first_groups: int

    @nn.compact
    def __call__(self, x):
        layers, inner = self.layers, self.features // 4
        shortcut = x if self.strides == 1 else avg_pool(x, 3, 2, padding=1)
        features = self.features - (0 if self.strides == 1 else x.shape[-1])
        y = layers.squeeze_excite('pre', x)
        y = nn.relu(layers.conv_norm(1, y, inner, groups=self.first_groups))
        y = channel_shuffle(y, self.groups)
        y = layers.conv_norm(2, y, inner, 3, self.strides, groups=inner)
        y = layers.squeeze_excite('inside_3x3', y)
        y = layers.squeeze_excite('standard', layers.conv_norm(3, y, features, groups=self.groups))
        shortcut = layers.squeeze_excite('identity', shortcut)
        y = shortcut + y if self.strides == 1 else jnp.concatenate([shortcut, y], -1)
        return layers.squeeze_excite('post', relu_of_sum(y))


class ShuffleNet(ResidualNetwork):
    """ShuffleNet of width 1. SE is on the branch, before addition or concatenation: the paper does
    not say where, but this agrees with the counts of Table 3.
    """

    stage_sizes: Sequence[int] = (4, 8, 4)
    se_stages: Sequence[int] = (2, 3, 4)

    stages = tuple(FEATURES)

    def trunk(self, x: jax.Array, train: bool) -> Maps:
        layers, groups = self.layers(train), 3
        x = nn.relu(layers.conv_norm('_stem', x, 24, 3, 2))
        yield 2, x
        x = max_pool(x, padding=1)
        yield 4, x
        for (stage, features), size in zip(FEATURES.items(), self.stage_sizes, strict=False):
            unit = partial(ShuffleUnit, self.layers(train, stage), features, groups=groups)
            for i in range(size):
                first_groups = 1 if stage == 2 and i == 0 else groups  # 24 channels are too few
                name = f'stage{stage}_block{i + 1}'
                x = unit(strides=1 if i else 2, first_groups=first_groups, name=name)(x)
            yield 2 << stage, x


_se = partial(SqueezeExcite, use_bias=False)  # section 5 does not say; Table 3's counts do
register_pair('shufflenet', module=ShuffleNet, se=_se)
