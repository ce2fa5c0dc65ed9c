"""ShuffleNet 1x with 3 groups (arXiv 1707.01083)."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from se_flax.models.network import Layers, Maps, ResidualNetwork
from se_flax.models.registry import register_pair
from se_flax.nn import SqueezeExcite, avg_pool, max_pool, relu_of_sum

STEM, GROUPS = 24, 3  # channels of the stem, groups of the 1x1 convolutions


class ShuffleUnit(nn.Module):
    """1x1, shuffle, depthwise 3x3, 1x1 beside the input (Figure 2 b, c), to `filters` channels.

    With stride 2 the averaged input is concatenated, so the branch has only the other channels.
    """

    layers: Layers
    filters: int
    strides: int

    @nn.compact
    def __call__(self, x):
        layers, inner = self.layers, self.filters // 4
        shortcut = x if self.strides == 1 else avg_pool(x, 3, 2, padding=1)
        features = self.filters - (0 if self.strides == 1 else x.shape[-1])
        y = layers.squeeze_excite('pre', x)
        first_groups = 1 if x.shape[-1] == STEM else GROUPS  # its channels are too few
        y = nn.relu(layers.conv_norm(1, y, inner, groups=first_groups))
        # Interleaves the channels of the groups, so that each of the next groups sees all.
        y = y.reshape(*y.shape[:-1], GROUPS, -1).swapaxes(-1, -2).reshape(y.shape)
        y = layers.conv_norm(2, y, inner, 3, self.strides, groups=inner)
        y = layers.squeeze_excite('inside_3x3', y)
        y = layers.squeeze_excite('standard', layers.conv_norm(3, y, features, groups=GROUPS))
        shortcut = layers.squeeze_excite('identity', shortcut)
        if self.strides == 1:
            y = shortcut + layers.drop_path(y)
        else:
            y = jnp.concatenate([shortcut, y], -1)
        return layers.squeeze_excite('post', relu_of_sum(y))


class ShuffleNet(ResidualNetwork):
    """ShuffleNet of width 1. SE is on the branch, before addition or concatenation: the paper does
    not say where, but this agrees with the counts of Table 3.
    """

    stage_sizes: Sequence[int] = (4, 8, 4)
    se_stages: Sequence[int] = (2, 3, 4)

    stages = (2, 3, 4)
    width = 240  # channels of stage 2; each further stage doubles them

    def trunk(self, x: jax.Array, train: bool) -> Maps:
        x = nn.relu(self.layers(train).conv_norm('_stem', x, STEM, 3, 2))
        yield 2, x
        x = max_pool(x, padding=1)
        yield 4, x
        yield from self.stack(x, 4, ShuffleUnit, train, halve_first=True)


_se = partial(SqueezeExcite, use_bias=False)  # section 5 does not say; Table 3's counts do
register_pair('shufflenet', module=ShuffleNet, se=_se)
