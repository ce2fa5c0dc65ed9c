"""Inverted residual blocks with SE (arXiv 1801.04381), and base class of the networks of them."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
from flax import linen as nn

from se_flax.errors import UserError, check_known
from se_flax.models.network import Layers, Maps, ResidualNetwork
from se_flax.nn import ACTIVATION
from se_flax.nn.squeeze_excite import round_channels


class Stage(NamedTuple):
    """Blocks of equal width.

    Attributes:
        features: channels out.
        expansions: of each block, channels inside by channels in; the last holds for all others.
        kernel_size: of the spatial convolutions.
        strides: of the first block.
        relu: the activation is ReLU and not the network's.
        fused: the spatial convolutions are not depthwise (arXiv 2104.00298, Figure 2).
    """

    features: int
    expansions: tuple[float, ...] = (6,)
    kernel_size: int = 3
    strides: int = 1
    relu: bool = False
    fused: bool = False


class InvertedResidual(nn.Module):
    """1x1 to more channels, depthwise, 1x1 to `features`, beside a shortcut if the shapes allow.

    With `expansion` 1 the first is left out. `fused` makes one spatial convolution of the first
    two, and of all three with `expansion` 1. SE's site 'inside_3x3' is after the activation of the
    spatial convolution; without a shortcut there is nothing at 'identity'.
    """

    layers: Layers
    features: int
    expansion: float
    kernel_size: int
    strides: int
    activation: str
    fused: bool

    @nn.compact
    def __call__(self, x):
        conv_norm, se = self.layers.conv_norm, self.layers.squeeze_excite
        act = ACTIVATION[self.activation]
        channels, spatial = x.shape[-1], (self.kernel_size, self.strides)
        inner = round_channels(channels * self.expansion)
        single = self.fused and inner == channels
        y = se('pre', x)
        if self.fused:
            y = act(conv_norm('_fused', y, self.features if single else inner, *spatial))
        else:
            if inner != channels:
                y = act(conv_norm('_expand', y, inner))
            y = act(conv_norm('_depthwise', y, inner, *spatial, groups=inner))
        y = se('inside_3x3', y)
        if not single:
            y = conv_norm('_project', y, self.features)
        y = se('standard', y)
        if x.shape == y.shape:
            y = self.layers.drop_path(y) + se('identity', x)
        return se('post', y)


class InvertedResidualNetwork(ResidualNetwork):
    """Base class: a stem and stages of inverted residual blocks; the stem is stage 1.

    SE is at 'inside_3x3' unless `placement` is another; blocks have no ReLU after the addition.

    Attributes:
        layout: the stages, as many as `stage_sizes`.
        width_multiplier: of all channels, which become multiples of 8.
        stem: channels of the first convolution, which a multiplier below 1 leaves as they are.
        activation: 'relu', 'silu' or 'hard_swish'.
        largest_kernel: kernels that are larger are reduced to this size.
        same_padding: pads as TensorFlow does, see `Conv`.
    """

    layout: Sequence[Stage] = ()
    placement: str = 'inside_3x3'
    se_stages: Sequence[int] = (2, 3, 4, 5, 6, 7, 8)
    width_multiplier: float = 1.0
    stem: int = 32
    activation: str = 'silu'
    largest_kernel: int = 5
    same_padding: bool = False
    epsilon: float = 1e-3

    stages = (2, 3, 4, 5, 6, 7, 8)
    reduce_input = True

    def __post_init__(self):
        super().__post_init__()
        check_known('activation', self.activation, ACTIVATION)
        if not self.width_multiplier > 0:
            raise UserError(f'width_multiplier={self.width_multiplier} must be above 0')
        if len(self.stage_sizes) != len(self.layout):
            raise UserError(f'stage_sizes={self.stage_sizes} must have {len(self.layout)} numbers')

    def scaled(self, channels: int) -> int:
        return round_channels(channels * self.width_multiplier)

    def layers(self, train: bool, stage: int = 1, unit: int = 0, channels: int = 0) -> Layers:
        layers = super().layers(train, stage, unit, channels)
        same = {'padding': 'same'} if self.same_padding else {}
        return layers._replace(conv=partial(layers.conv, **same))

    def trunk(self, x: jax.Array, train: bool) -> Maps:
        stride, stem = 2, max(self.stem, self.scaled(self.stem))
        x = self.layers(train).conv_norm('_stem', x, stem, 3, stride)
        x = ACTIVATION[self.activation](x)
        yield stride, x
        for number, stage in enumerate(self.layout, start=2):
            for i in range(self.stage_sizes[number - 2]):
                strides = stage.strides if i == 0 else 1
                x = InvertedResidual(
                    self.layers(train, number, i, x.shape[-1]),
                    self.scaled(stage.features),
                    stage.expansions[min(i, len(stage.expansions) - 1)],
                    min(stage.kernel_size, self.largest_kernel),
                    strides,
                    'relu' if stage.relu else self.activation,
                    stage.fused,
                    name=f'stage{number}_block{i + 1}',
                )(x)
                stride *= strides
                yield stride, x
