"""MobileNet 1.0 (arXiv 1704.04861)."""

from functools import partial

import jax
from flax import linen as nn

from se_flax.models.network import Layers, Maps, Network
from se_flax.models.registry import register_pair
from se_flax.nn import SqueezeExcite

# Channels out and stride of the 13 pairs of a depthwise and a pointwise convolution.
PAIRS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2))
PAIRS += ((512, 1),) * 5 + ((1024, 2), (1024, 1))


class SeparableConv(nn.Module):
    """A depthwise 3x3 convolution and a pointwise one, with SE after its ReLU."""

    layers: Layers
    features: int
    strides: int

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        conv_norm = self.layers.conv_norm
        x = nn.relu(conv_norm('_depthwise', x, channels, 3, self.strides, groups=channels))
        x = nn.relu(conv_norm('_pointwise', x, self.features))
        return self.layers.recalibrate(x)


class MobileNet(Network):
    """MobileNet of width 1. SE follows the pointwise convolutions, by the counts of Table 3."""

    def trunk(self, x: jax.Array, train: bool) -> Maps:
        layers, stride = self.layers(train), 2
        x = nn.relu(layers.conv_norm('_stem', x, 32, 3, stride))
        for i, (features, strides) in enumerate(PAIRS, start=1):
            x = SeparableConv(layers, features, strides, name=f'block{i}')(x)
            stride *= strides
            yield stride, x


_se = partial(SqueezeExcite, use_bias=False)  # section 5 does not say; Table 3's counts do
register_pair('mobilenet', module=MobileNet, se=_se)
