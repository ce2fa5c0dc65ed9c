"""Inception-ResNet-v2 (arXiv 1602.07261) in the layout of the public weights."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from se_flax.errors import UserError
from se_flax.models.network import Layers, Maps, ResidualNetwork
from se_flax.models.registry import register_pair
from se_flax.nn import avg_pool, max_pool, relu_of_sum


class C(NamedTuple):
    """A convolution of a branch, with BatchNorm and ReLU; the fields are `Conv`'s."""

    features: int
    kernel_size: int | tuple[int, int] = 1
    strides: int = 1
    padding: int | None = None


Branch = Sequence[C]
HALVE = {'kernel_size': 3, 'strides': 2, 'padding': 0}
BLOCK35 = ([C(32)], [C(32), C(32, 3)], [C(32), C(48, 3), C(64, 3)])
BLOCK17 = ([C(192)], [C(128), C(160, (1, 7)), C(192, (7, 1))])
BLOCK8 = ([C(192)], [C(192), C(224, (1, 3)), C(256, (3, 1))])
MIXED_5B = ([C(96)], [C(48), C(64, 5)], [C(64), C(96, 3), C(96, 3)])
MIXED_6A = ([C(384, **HALVE)], [C(256), C(256, 3), C(384, **HALVE)])
MIXED_7A = (
    [C(256), C(384, **HALVE)],
    [C(256), C(288, **HALVE)],
    [C(256), C(288, 3), C(320, **HALVE)],
)


def _branch(layers: Layers, name: str, x, convs: Branch):
    for i, conv in enumerate(convs, start=1):
        x = nn.relu(layers.conv_norm(f'_{name}_{i}', x, **conv._asdict()))
    return x


class Mixed(nn.Module):
    """Branches and the pooled input, concatenated, then SE."""

    layers: Layers
    branches: Sequence[Branch]
    projection: int | None = None  # channels of the pooled input; None for a pool that halves

    @nn.compact
    def __call__(self, x):
        maps = [_branch(self.layers, f'branch{i}', x, b) for i, b in enumerate(self.branches)]
        if self.projection:
            pooled = avg_pool(x, padding=1, count_pad=False)
            maps.append(_branch(self.layers, 'pool', pooled, [C(self.projection)]))
        else:
            maps.append(max_pool(x))
        return self.layers.recalibrate(jnp.concatenate(maps, -1))


class InceptionUnit(nn.Module):
    """Branches, concatenated ('inside_3x3' is here), projected and scaled, beside the input."""

    layers: Layers
    branches: Sequence[Branch]
    scale: float
    relu: bool = True

    @nn.compact
    def __call__(self, x):
        layers = self.layers
        y = layers.squeeze_excite('pre', x)
        maps = [_branch(layers, f'branch{i}', y, b) for i, b in enumerate(self.branches)]
        y = layers.squeeze_excite('inside_3x3', jnp.concatenate(maps, -1))
        y = layers.conv(x.shape[-1], 1, use_bias=True, name='conv_up')(y)
        y = self.scale * layers.squeeze_excite('standard', y)
        y = layers.drop_path(y) + layers.squeeze_excite('identity', x)
        return layers.squeeze_excite('post', relu_of_sum(y) if self.relu else y)


class InceptionResNetV2(ResidualNetwork):
    """Inception-ResNet-v2; the stages are 5, 6 and 7.

    The paper's variant was never published, and its 11.75 G multiply-adds fit no known layout (this
    one has 13.2 G). SE is on the branch, before its constant scale and the addition, and after the
    modules without a shortcut.
    """

    stage_sizes: Sequence[int] = (10, 20, 10)
    se_stages: Sequence[int] = (5, 6, 7)
    epsilon: float = 1e-3

    stages = (5, 6, 7)
    smallest = 75

    def __post_init__(self):
        super().__post_init__()
        if len(self.stage_sizes) != 3:
            raise UserError(f'stage_sizes={self.stage_sizes} must have 3 numbers')

    def trunk(self, x: jax.Array, train: bool) -> Maps:
        layers = self.layers(train)

        def conv(name, x, features, size, strides=1, padding=0):
            return nn.relu(layers.conv_norm(name, x, features, size, strides, padding=padding))

        def mixed(name, stage, x, branches, projection=None):
            return Mixed(self.layers(train, stage), branches, projection, name=f'mixed_{name}')(x)

        def units(name, stage, x, branches, scale):
            last = self.stage_sizes[stage - 5]
            for i in range(1, last + 1):
                plain = stage == 7 and i == last  # the network's last unit returns the plain sum
                fields = branches, 1.0 if plain else scale, not plain
                layers = self.layers(train, stage, i - 1)
                x = InceptionUnit(layers, *fields, name=f'{name}_{i}')(x)
            return x

        x = conv('_1a', x, 32, 3, 2)
        x = conv('_2a', x, 32, 3)
        x = conv('_2b', x, 64, 3, padding=1)
        yield 2, x
        x = conv('_3b', max_pool(x), 80, 1)
        x = conv('_4a', x, 192, 3)
        yield 4, x
        x = units('block35', 5, mixed('5b', 5, max_pool(x), MIXED_5B, 64), BLOCK35, 0.17)
        yield 8, x
        x = units('block17', 6, mixed('6a', 6, x, MIXED_6A), BLOCK17, 0.10)
        yield 16, x
        x = units('block8', 7, mixed('7a', 7, x, MIXED_7A), BLOCK8, 0.20)
        yield 32, conv('_7b', x, 1536, 1)


register_pair('inception_resnet_v2', module=InceptionResNetV2, input_size=299)
