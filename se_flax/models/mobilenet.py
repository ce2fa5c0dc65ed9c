"""MobileNet 1.0 (arXiv 1704.04861)."""

from functools import partial

import jax
from flax import linen as nn

from se_flax.models.network import Layer, Layers, Maps, Network, recalibrate
from se_flax.models.registry import PaperResult, register
from se_flax.nn import SqueezeExcite

# Channels out and stride of the 13 pairs of a depthwise and a pointwise convolution.
PAIRS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)


class SeparableConv(nn.Module):
    """A 3x3 convolution of each channel alone, then a 1x1 across them; SE behind its ReLU."""

    features: int
    strides: int
    layers: Layers
    se: Layer | None

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        conv_norm = self.layers.conv_norm
        x = nn.relu(conv_norm('_depthwise', x, channels, 3, self.strides, groups=channels))
        x = nn.relu(conv_norm('_pointwise', x, self.features))
        return recalibrate(self.se, x)


class MobileNet(Network):
    """MobileNet of width 1; SE scales the pointwise convolutions' outputs, which is what the
    parameters of Table 3 fit. See `Network`.
    """

    def trunk(self, x: jax.Array, train: bool) -> Maps:
        layers, stride = self.layers(train), 2
        x = nn.relu(layers.conv_norm('_stem', x, 32, 3, stride))
        for i, (features, strides) in enumerate(PAIRS, start=1):
            x = SeparableConv(features, strides, layers, self.se, name=f'block{i}')(x)
            stride *= strides
            yield stride, x


# Whether section 5's SE has biases is open; without them the counts are those of Table 3.
_se = partial(SqueezeExcite, use_bias=False)
_mobilenet = partial(register, module=MobileNet)
_mobilenet('mobilenet', paper=PaperResult(28.4, 9.4, 'Table 3', 569e6))
_mobilenet('se_mobilenet', se=_se, paper=PaperResult(25.3, 7.7, 'Table 3', 572e6))
