"""Pre-activated ResNet (arXiv 1603.05027) and wide ResNet (arXiv 1605.07146) for CIFAR."""

from collections.abc import Sequence
from functools import partial

import jax
from flax import linen as nn

from se_flax.models.network import Layers, Maps, ResidualNetwork
from se_flax.models.registry import register_pair


class PreActUnit(nn.Module):
    """Convolutions beside a shortcut, each after BatchNorm and ReLU; the first has the stride.

    A projection also takes the activated input, which SE at the site 'pre' scales for the branch
    only.
    """

    layers: Layers
    filters: int
    strides: int
    bottleneck: bool

    @nn.compact
    def __call__(self, x):
        layers = self.layers
        # Channels per filter and kernel size.
        convs = [(1, 1), (1, 3), (4, 1)] if self.bottleneck else [(1, 3), (1, 3)]

        def act(i, x):
            return nn.relu(layers.norm(name=f'norm{i}')(x))

        activated = act(1, x)
        y = layers.squeeze_excite('pre', activated)
        for i, (expansion, kernel_size) in enumerate(convs, start=1):
            y = act(i, y) if i > 1 else y
            y = layers.squeeze_excite('inside_3x3', y) if i == len(convs) else y
            strides = self.strides if i == 1 else 1
            filters = expansion * self.filters
            y = layers.conv(filters, kernel_size, strides, name=f'conv{i}')(y)
        if x.shape != y.shape:
            x = layers.conv(y.shape[-1], 1, self.strides, name='conv_proj')(activated)
        y = layers.drop_path(layers.squeeze_excite('standard', y))
        return layers.squeeze_excite('post', y + layers.squeeze_excite('identity', x))


class PreActResNet(ResidualNetwork):
    """Pre-activated ResNet for 32x32 images: stages 2, 3 and 4 after a 3x3 stem."""

    stage_sizes: Sequence[int] = (18, 18, 18)
    bottleneck: bool = False
    width: float = 16  # filters of stage 2; each further stage doubles them
    se_stages: Sequence[int] = (2, 3, 4)

    stages = (2, 3, 4)

    def trunk(self, x: jax.Array, train: bool) -> Maps:
        layers = self.layers(train)
        x = layers.conv(16, 3, name='conv_stem')(x)  # 16 in the wide networks as well
        unit = partial(PreActUnit, bottleneck=self.bottleneck)
        for stride, y in self.stack(x, 1, unit, train):
            yield stride, y
        yield stride, nn.relu(layers.norm(name='norm_final')(y))


# Depths 6n + 2 and 9n + 2; the wide one, 6n + 4, counts its projections too.
_preact = partial(register_pair, module=PreActResNet, input_size=32, num_classes=10)
_preact('preact_resnet110')
_preact('preact_resnet164', bottleneck=True)
_preact('wrn16_8', stage_sizes=(2, 2, 2), width=128)
