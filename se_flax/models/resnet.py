"""ResNet (arXiv 1512.03385) in every depth of the paper and CIFAR's, with SE at any site."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from se_flax.errors import check_images, check_known
from se_flax.models.registry import PaperResult, register
from se_flax.nn import BatchNorm, Conv, SqueezeExcite, max_pool

Layer = Callable[..., nn.Module]
PLACEMENTS = ('standard', 'pre', 'post', 'identity', 'inside_3x3')
STEMS = ('imagenet', 'cifar')
STRIDES_IN = ('1x1', '3x3')
POOLS = ('caffe', 'padded')


class Unit(nn.Module):
    """What the residual units share: the layers handed down and the sites of SE.

    Takes `[B, H, W, C]`, returns a map smaller by `strides` in both directions.
    """

    filters: int
    strides: int
    conv: Layer
    norm: Layer
    se: Layer | None
    placement: str
    stride_in: str
    last_scale_init: Callable[..., Any]

    def squeeze_excite(self, site, x):
        return self.se(name='se')(x) if self.se and site == self.placement else x

    def conv_norm(self, i, x, filters, kernel_size, strides=1, **norm):
        x = self.conv(filters, kernel_size, strides, name=f'conv{i}')(x)
        return self.norm(name=f'norm{i}', **norm)(x)

    def join(self, x, y):
        """Adds the shortcut, projected where the shapes differ, and applies the last ReLU."""
        if x.shape != y.shape:
            x = self.conv_norm('_proj', x, y.shape[-1], 1, self.strides)
        # Behind the projection, so that the width is the unit's (the paper leaves it open).
        x = self.squeeze_excite('identity', x)
        return self.squeeze_excite('post', nn.relu(y + x))


class BasicBlock(Unit):
    """3x3, 3x3 beside a shortcut (arXiv 1512.03385, Figure 5 left): `filters` channels out."""

    @nn.compact
    def __call__(self, x):
        y = self.squeeze_excite('pre', x)
        y = nn.relu(self.conv_norm(1, y, self.filters, 3, self.strides))
        y = self.squeeze_excite('inside_3x3', y)
        y = self.conv_norm(2, y, self.filters, 3, scale_init=self.last_scale_init)
        return self.join(x, self.squeeze_excite('standard', y))


class Bottleneck(Unit):
    """1x1, 3x3, 1x1 beside a shortcut (the same, right): `4 filters` channels out."""

    @nn.compact
    def __call__(self, x):
        in_1x1 = self.strides if self.stride_in == '1x1' else 1
        y = self.squeeze_excite('pre', x)
        y = nn.relu(self.conv_norm(1, y, self.filters, 1, in_1x1))
        y = nn.relu(self.conv_norm(2, y, self.filters, 3, self.strides // in_1x1))
        y = self.squeeze_excite('inside_3x3', y)
        y = self.conv_norm(3, y, 4 * self.filters, 1, scale_init=self.last_scale_init)
        return self.join(x, self.squeeze_excite('standard', y))


class ResNet(nn.Module):
    """ResNet, plain where `se=None`: `[B, H, W, 3]` float images to `[B, num_classes]` logits.

    The logits are float32 or wider. Raises UserError for other images and for an unknown switch.

    Attributes:
        stage_sizes: units a stage; the paper counts the stem as stage 1, so these are 2, 3, ...
        block: BasicBlock or Bottleneck.
        num_classes: width of the head.
        se: makes the SE block, such as `partial(SqueezeExcite, reduction=8)`.
        placement: 'standard', 'pre', 'post', 'identity' (Figure 5, Table 14) or 'inside_3x3'
            (Table 15).
        se_stages: stages that have SE (Table 13).
        width: channels of the stem and filters of stage 2; each further stage doubles them.
        stem: 'imagenet' (7x7 and a pool, both of stride 2) or 'cifar' (3x3).
        stem_strides: stride of the stem's convolution; None is 2 for 'imagenet', 1 for 'cifar'.
        pool: of the stem: 'caffe' (unpadded, rounding up) or 'padded' (torchvision, timm).
        stride_in: convolution of a Bottleneck that halves the map: '1x1' (Caffe) or '3x3'.
        zero_init: starts the last BatchNorm scale of each unit at 0 (arXiv 1706.02677), not 1.
        bn_group_size: images that share BatchNorm statistics; None is the global batch.
        bn_momentum: share of the running statistics kept at a step.
        dtype: of the maps; parameters and statistics are float32 or wider.
    """

    stage_sizes: Sequence[int]
    block: type[Unit] = Bottleneck
    num_classes: int = 1000
    se: Layer | None = None
    placement: str = 'standard'
    se_stages: Sequence[int] = (2, 3, 4, 5)
    width: int = 64
    stem: str = 'imagenet'
    stem_strides: int | None = None
    pool: str = 'caffe'
    stride_in: str = '1x1'
    zero_init: bool = False
    bn_group_size: int | None = None
    bn_momentum: float = 0.9
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        check_images(x)
        check_known('placement', self.placement, PLACEMENTS)  # a typo must not mean "no SE"
        check_known('stem', self.stem, STEMS)
        check_known('pool', self.pool, POOLS)
        check_known('stride_in', self.stride_in, STRIDES_IN)
        for stage in self.se_stages:
            check_known('stage in se_stages', stage, (2, 3, 4, 5))
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(
            BatchNorm,
            use_running_average=not train,
            group_size=self.bn_group_size,
            momentum=self.bn_momentum,
            dtype=self.dtype,
        )
        if self.stem == 'imagenet':
            x = conv(self.width, 7, self.stem_strides or 2, name='conv_stem')(x)
        else:
            x = conv(self.width, 3, self.stem_strides or 1, name='conv_stem')(x)
        x = nn.relu(norm(name='norm_stem')(x))
        if self.stem == 'imagenet':
            x = max_pool(x, ceil=True) if self.pool == 'caffe' else max_pool(x, padding=1)
        unit = partial(
            self.block,
            conv=conv,
            norm=norm,
            placement=self.placement,
            stride_in=self.stride_in,
            last_scale_init=nn.initializers.zeros if self.zero_init else nn.initializers.ones,
        )
        for stage, size in enumerate(self.stage_sizes, start=2):
            se = self.se if stage in self.se_stages else None
            for i in range(size):
                strides = 2 if stage > 2 and i == 0 else 1
                name = f'stage{stage}_block{i + 1}'
                x = unit(self.width << stage - 2, strides, se=se, name=name)(x)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        head = nn.Dense(self.num_classes, dtype=wide, param_dtype=wide, name='head')
        return head(x.astype(wide).mean((1, 2)))


def _table2(top1: float, top5: float) -> PaperResult:
    return PaperResult(top1, top5, 'Table 2')


# ResNet-18 and -34 are not in the paper; resnet50 and deeper are its re-implementation.
_basic = partial(register, module=ResNet, block=BasicBlock)
_basic('resnet18', stage_sizes=(2, 2, 2, 2))
_basic('se_resnet18', stage_sizes=(2, 2, 2, 2), se=SqueezeExcite)
_basic('resnet34', stage_sizes=(3, 4, 6, 3))
_basic('se_resnet34', stage_sizes=(3, 4, 6, 3), se=SqueezeExcite)

_plain = partial(register, module=ResNet)
_se = partial(register, module=ResNet, se=SqueezeExcite)
_plain('resnet50', stage_sizes=(3, 4, 6, 3), paper=_table2(24.80, 7.48))
_se('se_resnet50', stage_sizes=(3, 4, 6, 3), paper=_table2(23.29, 6.62))
_plain('resnet101', stage_sizes=(3, 4, 23, 3), paper=_table2(23.17, 6.52))
_se('se_resnet101', stage_sizes=(3, 4, 23, 3), paper=_table2(22.38, 6.07))
_plain('resnet152', stage_sizes=(3, 8, 36, 3), paper=_table2(22.42, 6.34))
_se('se_resnet152', stage_sizes=(3, 8, 36, 3), paper=_table2(21.57, 5.73))

# Depth 6n + 2 (arXiv 1512.03385, section 4.2) with projections; the paper's own ResNet-110 is
# another network, pre-activated.
_cifar = partial(_basic, width=16, stem='cifar', input_size=32, num_classes=10)
_cifar('resnet8_cifar', stage_sizes=(1, 1, 1))
_cifar('se_resnet8_cifar', stage_sizes=(1, 1, 1), se=SqueezeExcite)
_cifar('resnet20_cifar', stage_sizes=(3, 3, 3))
_cifar('se_resnet20_cifar', stage_sizes=(3, 3, 3), se=SqueezeExcite)
_cifar('resnet32_cifar', stage_sizes=(5, 5, 5))
_cifar('se_resnet32_cifar', stage_sizes=(5, 5, 5), se=SqueezeExcite)
_cifar('resnet44_cifar', stage_sizes=(7, 7, 7))
_cifar('se_resnet44_cifar', stage_sizes=(7, 7, 7), se=SqueezeExcite)
_cifar('resnet56_cifar', stage_sizes=(9, 9, 9))
_cifar('se_resnet56_cifar', stage_sizes=(9, 9, 9), se=SqueezeExcite)
_cifar('resnet110_cifar', stage_sizes=(18, 18, 18))
_cifar('se_resnet110_cifar', stage_sizes=(18, 18, 18), se=SqueezeExcite)
