"""ShuffleNet 1x with 3 groups (arXiv 1707.01083)."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from se_flax.models.network import Maps
from se_flax.models.registry import PaperResult, register
from se_flax.models.residual import ResidualNetwork, ResidualUnit
from se_flax.nn import SqueezeExcite, avg_pool, max_pool, relu_of_sum

FEATURES = {2: 240, 3: 480, 4: 960}  # channels out of a stage


def channel_shuffle(x, groups: int):
    """Deals the channels of `groups` groups round, so that the next groups see all of them."""
    return x.reshape(*x.shape[:-1], groups, -1).swapaxes(-1, -2).reshape(x.shape)


class ShuffleUnit(ResidualUnit):
    """1x1, shuffle, depthwise 3x3, 1x1 beside the input (Figure 2 b, c): `features` channels out.

    With stride 2 the averaged input is concatenated, not added, so the branch makes the rest.
    """

    features: int
    strides: int
    groups: int
    first_groups: int

    @nn.compact
    def __call__(self, x):
        conv_norm, inner = self.layers.conv_norm, self.features // 4
        shortcut = x if self.strides == 1 else avg_pool(x, 3, 2, padding=1)
        features = self.features - (0 if self.strides == 1 else x.shape[-1])
        y = self.squeeze_excite('pre', x)
        y = nn.relu(conv_norm(1, y, inner, groups=self.first_groups))
        y = channel_shuffle(y, self.groups)
        y = conv_norm(2, y, inner, 3, self.strides, groups=inner)
        y = self.squeeze_excite('inside_3x3', y)
        y = self.squeeze_excite('standard', conv_norm(3, y, features, groups=self.groups))
        shortcut = self.squeeze_excite('identity', shortcut)
        y = shortcut + y if self.strides == 1 else jnp.concatenate([shortcut, y], -1)
        return self.squeeze_excite('post', relu_of_sum(y))


class ShuffleNet(ResidualNetwork):
    """ShuffleNet of width 1. SE stands on the branch, before addition or concatenation: the paper
    does not say where, but there its parameters are Table 3's. See `ResidualNetwork`.
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
            unit = partial(self.unit(ShuffleUnit, stage, layers), features=features, groups=groups)
            for i in range(size):
                # 24 channels are too few to group.
                first_groups = 1 if stage == 2 and i == 0 else groups
                name = f'stage{stage}_block{i + 1}'
                x = unit(strides=1 if i else 2, first_groups=first_groups, name=name)(x)
            yield 2 << stage, x


# Whether section 5's SE has biases is open; without them the counts are those of Table 3.
_se = partial(SqueezeExcite, use_bias=False)
_shufflenet = partial(register, module=ShuffleNet)
_shufflenet('shufflenet', paper=PaperResult(32.6, 12.5, 'Table 3', 140e6))
_shufflenet('se_shufflenet', se=_se, paper=PaperResult(31.0, 11.1, 'Table 3', 142e6))
