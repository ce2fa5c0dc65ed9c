"""VGG-16 with BatchNorm (arXiv 1409.1556, configuration D)."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from se_flax.models.network import Maps, Network
from se_flax.models.registry import register_pair
from se_flax.nn import adaptive_avg_pool, max_pool
from se_flax.nn.conv import he_normal

STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # channels by the width, convolutions


class VGG(Network):
    """VGG-16 with SE after the ReLU of each convolution (section 3.3).

    Dropout follows both hidden layers, which are part of the pooled features.

    Attributes:
        width: channels of stage 1; the last stages have 8, the hidden layers 64 times as many.
    """

    width: int = 64
    dropout: float = 0.5

    smallest = 32

    def trunk(self, x: jax.Array, train: bool) -> Maps:
        layers = self.layers(train)
        for stage, (widths, convs) in enumerate(STAGES, start=1):
            features = widths * self.width
            for i in range(1, convs + 1):
                x = nn.relu(layers.conv_norm(f'{stage}_{i}', x, features, 3))
                x = layers.recalibrate(x, f'se{stage}_{i}')
            yield 1 << stage - 1, x
            x = max_pool(x, 2, 2)
        yield 32, x

    def classify(self, x: jax.Array, train: bool) -> jax.Array:
        # The hidden layers take a 7x7 map, as a 224 image has.
        x = adaptive_avg_pool(x, 7).reshape(x.shape[0], -1)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        hidden = 64 * self.width
        dense = partial(nn.Dense, hidden, dtype=self.dtype, param_dtype=wide, kernel_init=he_normal)
        x = nn.relu(dense(name='fc6')(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return super().classify(nn.relu(dense(name='fc7')(x)), train)


register_pair('vgg16', module=VGG)
