"""The residual units of ResNet and its descendants."""

from collections.abc import Callable
from typing import Any, ClassVar

from flax import linen as nn

from se_flax.models.network import Layers
from se_flax.nn import Affine, avg_pool, relu_of_sum

STRIDE_IN = ('1x1', '3x3', 'average')  # the layers that can halve a map, in their order


class Unit(nn.Module):
    """Base class of the units; `ResNet` explains the fields."""

    layers: Layers
    filters: int
    strides: int
    stride_in: str = '3x3'
    groups: int = 1
    group_width: int = 64
    projection_size: int = 1
    average_shortcut: bool = False
    last_scale_init: Callable[..., Any] = nn.initializers.ones

    def join(self, x, y):
        """Adds the shortcut, projected if the shapes differ, and applies the last ReLU."""
        squeeze_excite = self.layers.squeeze_excite
        y = self.layers.drop_path(y.map() if isinstance(y, Affine) else y)
        shortcut = x if x.shape == y.shape else self.project(x, y.shape[-1])
        # After the projection, so that SE has the unit's width (the paper leaves it open).
        shortcut = squeeze_excite('identity', shortcut)
        return squeeze_excite('post', relu_of_sum(y + shortcut))

    def project(self, x, features):
        if self.average_shortcut:
            x = avg_pool(x, 2, 2, ceil=True) if self.strides > 1 else x
            return self.layers.conv_norm('_avg_proj', x, features)
        # As in SENet-154, only a projection that shrinks the map may be wide.
        size = self.projection_size if self.strides > 1 else 1
        return self.layers.conv_norm('_proj', x, features, size, self.strides)


class BasicBlock(Unit):
    """3x3, 3x3 beside a shortcut, to `filters` channels (arXiv 1512.03385, Figure 5 left)."""

    extra_relu: bool = False  # between the last BatchNorm and SE, for timm's legacy weights

    @nn.compact
    def __call__(self, x):
        layers, last = self.layers, {'affine': True, 'scale_init': self.last_scale_init}
        y = layers.squeeze_excite('pre', x)
        y = nn.relu(layers.conv_norm(1, y, self.filters, 3, self.strides))
        y = layers.squeeze_excite('inside_3x3', y)
        y = layers.conv_norm(2, y, self.filters, 3, **last)
        y = nn.relu(y.map()) if self.extra_relu else y
        return self.join(x, layers.squeeze_excite('standard', y))


class Bottleneck(Unit):
    """1x1, 3x3, 1x1 beside a shortcut, to `4 filters` channels (the same figure, right).

    As in ResNeXt (arXiv 1611.05431, Figure 3c), the 3x3 has `groups` groups of
    `group_width * filters / 64` channels.
    """

    halve_first: bool = False  # the first 1x1 has half the 3x3's channels, as in SENet-154

    expansion: ClassVar[int] = 4

    @property
    def inner(self) -> int:
        """The channels of the 3x3."""
        return self.filters * self.group_width // 64 * self.groups

    @nn.compact
    def __call__(self, x):
        layers, last = self.layers, {'affine': True, 'scale_init': self.last_scale_init}
        first = self.inner // 2 if self.halve_first else self.inner
        in_1x1, in_3x3, in_pool = (
            self.strides if self.stride_in == layer else 1 for layer in STRIDE_IN
        )
        y = layers.squeeze_excite('pre', x)
        y = nn.relu(layers.conv_norm(1, y, first, 1, in_1x1))
        y = nn.relu(layers.conv_norm(2, y, self.inner, 3, in_3x3, groups=self.groups))
        y = avg_pool(y, 2, 2, ceil=True) if in_pool > 1 else y
        y = layers.squeeze_excite('inside_3x3', y)
        y = layers.conv_norm(3, y, self.expansion * self.filters, **last)
        return self.join(x, layers.squeeze_excite('standard', y))
