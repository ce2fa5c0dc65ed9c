"""Pre-activated ResNet (arXiv 1603.05027) and wide ResNet (arXiv 1605.07146) for CIFAR."""

from collections.abc import Sequence
from functools import partial

import jax
from flax import linen as nn

from se_flax.models.network import Maps
from se_flax.models.registry import PaperResult, register
from se_flax.models.residual import ResidualNetwork, ResidualUnit
from se_flax.nn import SqueezeExcite


class PreActUnit(ResidualUnit):
    """What both units share: BatchNorm and ReLU stand before each convolution.

    Where the shape changes, the projection too takes the activated input. SE at the site 'pre'
    scales that input for the branch alone.
    """

    filters: int
    strides: int

    def act(self, i, x):
        return nn.relu(self.layers.norm(name=f'norm{i}')(x))

    def conv(self, i, x, filters, kernel_size, strides=1):
        return self.layers.conv(filters, kernel_size, strides, name=f'conv{i}')(x)

    def join(self, x, activated, y):
        if x.shape != y.shape:
            x = self.conv('_proj', activated, y.shape[-1], 1, self.strides)
        y = self.squeeze_excite('standard', y)
        return self.squeeze_excite('post', y + self.squeeze_excite('identity', x))


class PreActBasicBlock(PreActUnit):
    """3x3, 3x3: `[B, H, W, C]` to `[B, H / strides, W / strides, filters]`."""

    @nn.compact
    def __call__(self, x):
        activated = self.act(1, x)
        y = self.squeeze_excite('pre', activated)
        y = self.act(2, self.conv(1, y, self.filters, 3, self.strides))
        y = self.squeeze_excite('inside_3x3', y)
        return self.join(x, activated, self.conv(2, y, self.filters, 3))


class PreActBottleneck(PreActUnit):
    """1x1, 3x3, 1x1, the first with the stride: `4 filters` channels out."""

    @nn.compact
    def __call__(self, x):
        activated = self.act(1, x)
        y = self.squeeze_excite('pre', activated)
        y = self.act(2, self.conv(1, y, self.filters, 1, self.strides))
        y = self.act(3, self.conv(2, y, self.filters, 3))
        y = self.squeeze_excite('inside_3x3', y)
        return self.join(x, activated, self.conv(3, y, 4 * self.filters, 1))


class PreActResNet(ResidualNetwork):
    """Pre-activated ResNet for 32x32 images: three stages behind a 3x3 stem.

    See `Network` and `ResidualNetwork`; the stages are 2, 3 and 4, the stem counts as the first.

    Attributes:
        block: PreActBasicBlock or PreActBottleneck.
        width: filters of stage 2; each further stage doubles them.
    """

    stage_sizes: Sequence[int] = (18, 18, 18)
    block: type[PreActUnit] = PreActBasicBlock
    width: int = 16
    se_stages: Sequence[int] = (2, 3, 4)

    stages = (2, 3, 4)

    def trunk(self, x: jax.Array, train: bool) -> Maps:
        layers = self.layers(train)
        x = layers.conv(16, 3, name='conv_stem')(x)  # 16 in the wide networks as well
        maps = self.stack(x, 1, self.block, layers)
        for stride, x in maps:
            yield stride, x
        yield stride, nn.relu(layers.norm(name='norm_final')(x))


# Depths 6n + 2 and 9n + 2; the wide one, 6n + 4, counts its projections too.
_preact = partial(register, module=PreActResNet, input_size=32, num_classes=10)
_resnet110 = partial(_preact, stage_sizes=(18, 18, 18))
_resnet110('preact_resnet110', paper=PaperResult(6.37, None, 'Table 4, CIFAR-10'))
_resnet110(
    'se_preact_resnet110', se=SqueezeExcite, paper=PaperResult(5.21, None, 'Table 4, CIFAR-10')
)
_resnet164 = partial(_preact, stage_sizes=(18, 18, 18), block=PreActBottleneck)
_resnet164('preact_resnet164', paper=PaperResult(5.46, None, 'Table 4, CIFAR-10'))
_resnet164(
    'se_preact_resnet164', se=SqueezeExcite, paper=PaperResult(4.39, None, 'Table 4, CIFAR-10')
)
_wrn16_8 = partial(_preact, stage_sizes=(2, 2, 2), width=128)
_wrn16_8('wrn16_8', paper=PaperResult(4.27, None, 'Table 4, CIFAR-10'))
_wrn16_8('se_wrn16_8', se=SqueezeExcite, paper=PaperResult(3.88, None, 'Table 4, CIFAR-10'))
