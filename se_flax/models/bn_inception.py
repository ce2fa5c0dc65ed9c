"""BN-Inception (arXiv 1502.03167), as the authors released it in Caffe."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from se_flax.errors import check_multiple
from se_flax.models.network import Layers, Maps, Network
from se_flax.models.registry import register_pair
from se_flax.nn import avg_pool, max_pool

# Fields of the InceptionModules; those without a 1x1 branch and a projection halve the map.
MODULES = {
    '3a': (64, (64, 64), (64, 96, 96), 'mean', 32),
    '3b': (64, (64, 96), (64, 96, 96), 'mean', 64),
    '3c': (None, (128, 160), (64, 96, 96), 'max', None),
    '4a': (224, (64, 96), (96, 128, 128), 'mean', 128),
    '4b': (192, (96, 128), (96, 128, 128), 'mean', 128),
    '4c': (160, (128, 160), (128, 160, 160), 'mean', 128),
    '4d': (96, (128, 192), (160, 192, 192), 'mean', 128),
    '4e': (None, (128, 192), (192, 256, 256), 'max', None),
    '5a': (352, (192, 320), (160, 224, 224), 'mean', 128),
    '5b': (352, (192, 320), (192, 224, 224), 'max', 128),
}


class InceptionModule(nn.Module):
    """Up to four branches, one of them of the pooled input, concatenated, then SE."""

    layers: Layers
    conv1x1: int | None
    conv3x3: tuple[int, int]
    double3x3: tuple[int, int, int]
    pool: str
    projection: int | None

    @nn.compact
    def __call__(self, x):
        def conv(name, x, features, kernel_size, strides=1):
            return nn.relu(self.layers.conv_norm(name, x, features, kernel_size, strides))

        strides = 1 if self.projection else 2
        branches = [conv('_1x1', x, self.conv1x1, 1)] if self.conv1x1 else []
        y = conv('_3x3_reduce', x, self.conv3x3[0], 1)
        branches.append(conv('_3x3', y, self.conv3x3[1], 3, strides))
        y = conv('_double3x3_reduce', x, self.double3x3[0], 1)
        y = conv('_double3x3_1', y, self.double3x3[1], 3)
        branches.append(conv('_double3x3_2', y, self.double3x3[2], 3, strides))
        if strides == 2:
            branches.append(max_pool(x, ceil=True))
        else:
            y = avg_pool(x, padding=1) if self.pool == 'mean' else max_pool(x, 3, 1, padding=1)
            branches.append(conv('_pool_proj', y, self.projection, 1))
        return self.layers.recalibrate(jnp.concatenate(branches, -1))


class BNInception(Network):
    """BN-Inception with SE after each of the ten modules (section 3.3)."""

    smallest = 32

    def trunk(self, x: jax.Array, train: bool) -> Maps:
        # Unpadded pools and padded convolutions halve other maps to different sizes.
        for side, size in zip(('height', 'width'), x.shape[1:3], strict=True):
            check_multiple(f'image {side}', size, 'total stride', 32)
        layers = self.layers(train)
        x = nn.relu(layers.conv_norm('1', x, 64, 7, 2))
        yield 2, x
        x = max_pool(x, ceil=True)
        x = nn.relu(layers.conv_norm('2_reduce', x, 64, 1))
        x = nn.relu(layers.conv_norm('2', x, 192, 3))
        yield 4, x
        x, stride = max_pool(x, ceil=True), 8
        for name, widths in MODULES.items():
            stride *= 1 if widths[-1] else 2
            x = InceptionModule(layers, *widths, name=f'inception_{name}')(x)
            yield stride, x


register_pair('bn_inception', module=BNInception)
