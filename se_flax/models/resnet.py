"""ResNet, ResNeXt and SENet-154: bottlenecks in every depth and width of the paper."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from se_flax.errors import UserError, check_known
from se_flax.models.network import Layers, Maps
from se_flax.models.registry import PaperResult, register
from se_flax.models.residual import ResidualNetwork, ResidualUnit
from se_flax.nn import EXCITE, Affine, SqueezeExcite, max_pool, relu_of_sum

STEMS = ('imagenet', 'deep', 'cifar')
STRIDES_IN = ('1x1', '3x3')
POOLS = ('caffe', 'padded')


class Unit(ResidualUnit):
    """What both units share: `[B, H, W, C]` to a map smaller by `strides` in both directions."""

    filters: int
    strides: int
    stride_in: str
    groups: int
    group_width: int
    projection_size: int
    last_scale_init: Callable[..., Any]

    def join(self, x, y):
        """Adds the shortcut, projected where the shapes differ, and applies the last ReLU."""
        y = y.map() if isinstance(y, Affine) else y
        if x.shape != y.shape:
            # A wide projection is for maps that shrink; elsewhere it stays 1x1, as in SENet-154.
            size = self.projection_size if self.strides > 1 else 1
            x = self.layers.conv_norm('_proj', x, y.shape[-1], size, self.strides)
        # Behind the projection, so that the width is the unit's (the paper leaves it open).
        x = self.squeeze_excite('identity', x)
        return self.squeeze_excite('post', relu_of_sum(y + x))


class BasicBlock(Unit):
    """3x3, 3x3 beside a shortcut (arXiv 1512.03385, Figure 5 left): `filters` channels out.

    Attributes:
        extra_relu: a ReLU between the last BatchNorm and SE, as timm's legacy weights have it.
    """

    extra_relu: bool = False

    @nn.compact
    def __call__(self, x):
        y = self.squeeze_excite('pre', x)
        y = nn.relu(self.layers.conv_norm(1, y, self.filters, 3, self.strides))
        y = self.squeeze_excite('inside_3x3', y)
        y = self.layers.conv_affine(2, y, self.filters, 3, scale_init=self.last_scale_init)
        y = nn.relu(y.map()) if self.extra_relu else y
        return self.join(x, self.squeeze_excite('standard', y))


class Bottleneck(Unit):
    """1x1, 3x3, 1x1 beside a shortcut (the same, right): `4 filters` channels out.

    With groups it is ResNeXt's (arXiv 1611.05431, Figure 3c): the 3x3 has `groups` groups of
    `group_width * filters / 64` channels.

    Attributes:
        halve_first: the first 1x1 gives half the 3x3's channels, as in SENet-154.
    """

    halve_first: bool = False

    @nn.compact
    def __call__(self, x):
        inner = self.filters * self.group_width // 64 * self.groups
        first = inner // 2 if self.halve_first else inner
        in_1x1 = self.strides if self.stride_in == '1x1' else 1
        in_3x3 = self.strides // in_1x1
        conv_norm, conv_affine = self.layers.conv_norm, self.layers.conv_affine
        y = self.squeeze_excite('pre', x)
        y = nn.relu(conv_norm(1, y, first, 1, in_1x1))
        y = nn.relu(conv_norm(2, y, inner, 3, in_3x3, groups=self.groups))
        y = self.squeeze_excite('inside_3x3', y)
        y = conv_affine(3, y, 4 * self.filters, 1, scale_init=self.last_scale_init)
        return self.join(x, self.squeeze_excite('standard', y))


class ResNet(ResidualNetwork):
    """ResNet and its descendants (arXiv 1512.03385, 1611.05431; SENet-154: appendix).

    Plain where `se=None`. See `Network` and `ResidualNetwork` for what it shares with the others.
    The paper counts the stem as stage 1, so the others are 2, 3, ...

    Attributes:
        block: BasicBlock or Bottleneck, or a `partial` with that class's own fields.
        width: channels of the stem and filters of stage 2; each further stage doubles them.
        stem: 'imagenet' (7x7 and a pool, both of stride 2), 'deep' (three 3x3, the last twice as
            wide, and the pool) or 'cifar' (3x3).
        stem_strides: 1, 2 or 4, of the stem's first convolution; None is 1 for 'cifar', else 2.
        pool: of the stem: 'caffe' (unpadded, rounding up) or 'padded' (torchvision, timm).
        stride_in: convolution of a Bottleneck that halves the map: '1x1' (Caffe) or '3x3'.
        groups: of a Bottleneck's 3x3.
        group_width: channels of such a group in stage 2, at width 64; with one group of 64 it is
            ResNet's.
        projection_size: kernel of the shortcuts that halve the map; SENet-154 has 3.
        zero_init: starts the last BatchNorm scale of each unit at 0 (arXiv 1706.02677), not 1; not
            with gates that are 0 at 0 (tanh, ReLU), which would never open.
    """

    block: Callable[..., Unit] = Bottleneck
    width: int = 64
    stem: str = 'imagenet'
    stem_strides: int | None = None
    pool: str = 'caffe'
    stride_in: str = '1x1'
    groups: int = 1
    group_width: int = 64
    projection_size: int = 1
    zero_init: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_known('stem', self.stem, STEMS)
        check_known('stem_strides', self.stem_strides, (None, 1, 2, 4))
        check_known('pool', self.pool, POOLS)
        check_known('stride_in', self.stride_in, STRIDES_IN)
        excite = getattr(self.se, 'keywords', {}).get('excite')
        if self.zero_init and self.placement == 'standard' and excite in EXCITE:
            with jax.ensure_compile_time_eval(), jax.transfer_guard('allow'):
                closed = not EXCITE[excite](jnp.zeros(()))
            if closed:
                # y gate with both 0 has no gradient: measured, a branch stayed 0 for all of a run.
                raise UserError(
                    f'zero_init=True with excite={excite!r}: map and gate of each unit start at 0 '
                    f'and would stay there, with no gradient; take zero_init=False'
                )

    @property
    def smallest(self) -> int:
        return 1 if self.stem == 'cifar' else 3  # the unpadded pool's

    def trunk(self, x: jax.Array, train: bool) -> Maps:
        layers, stride = self.layers(train), self.stem_strides or (1 if self.stem == 'cifar' else 2)
        x = self.stem_map(x, stride, layers)
        yield stride, x
        if self.stem != 'cifar':
            x = max_pool(x, ceil=True) if self.pool == 'caffe' else max_pool(x, padding=1)
            stride *= 2
        block = partial(
            self.block,
            stride_in=self.stride_in,
            groups=self.groups,
            group_width=self.group_width,
            projection_size=self.projection_size,
            last_scale_init=nn.initializers.zeros if self.zero_init else nn.initializers.ones,
        )
        yield from self.stack(x, stride, block, layers)

    def stem_map(self, x: jax.Array, strides: int, layers: Layers) -> jax.Array:
        if self.stem == 'deep':
            x = nn.relu(layers.conv_norm('_stem1', x, self.width, 3, strides))
            x = nn.relu(layers.conv_norm('_stem2', x, self.width, 3))
            return nn.relu(layers.conv_norm('_stem3', x, 2 * self.width, 3))
        kernel_size = 3 if self.stem == 'cifar' else 7
        return nn.relu(layers.conv_norm('_stem', x, self.width, kernel_size, strides))


def _table2(top1: float, top5: float, gmacs: float) -> PaperResult:
    return PaperResult(top1, top5, 'Table 2', gmacs * 1e9)


# The paper's lineage (Caffe). ResNet-18 and -34 are not in the paper; resnet50 and deeper are its
# re-implementation.
_basic = partial(register, module=ResNet, block=BasicBlock)
_basic('resnet18', stage_sizes=(2, 2, 2, 2))
_basic('se_resnet18', stage_sizes=(2, 2, 2, 2), se=SqueezeExcite)
_basic('resnet34', stage_sizes=(3, 4, 6, 3))
_basic('se_resnet34', stage_sizes=(3, 4, 6, 3), se=SqueezeExcite)

_plain = partial(register, module=ResNet)
_se = partial(register, module=ResNet, se=SqueezeExcite)
_plain('resnet50', stage_sizes=(3, 4, 6, 3), paper=_table2(24.80, 7.48, 3.86))
_se('se_resnet50', stage_sizes=(3, 4, 6, 3), paper=_table2(23.29, 6.62, 3.87))
_plain('resnet101', stage_sizes=(3, 4, 23, 3), paper=_table2(23.17, 6.52, 7.58))
_se('se_resnet101', stage_sizes=(3, 4, 23, 3), paper=_table2(22.38, 6.07, 7.60))
_plain('resnet152', stage_sizes=(3, 8, 36, 3), paper=_table2(22.42, 6.34, 11.30))
_se('se_resnet152', stage_sizes=(3, 8, 36, 3), paper=_table2(21.57, 5.73, 11.32))

_32x4d: dict[str, Any] = {'stride_in': '3x3', 'groups': 32, 'group_width': 4}
_64x4d: dict[str, Any] = {'stride_in': '3x3', 'groups': 64, 'group_width': 4}
_32x8d: dict[str, Any] = {'stride_in': '3x3', 'groups': 32, 'group_width': 8}
_32x48d: dict[str, Any] = {'stride_in': '3x3', 'groups': 32, 'group_width': 48}
_plain('resnext50_32x4d', stage_sizes=(3, 4, 6, 3), **_32x4d, paper=_table2(22.11, 5.90, 4.24))
_se('se_resnext50_32x4d', stage_sizes=(3, 4, 6, 3), **_32x4d, paper=_table2(21.10, 5.49, 4.25))
_plain('resnext101_32x4d', stage_sizes=(3, 4, 23, 3), **_32x4d, paper=_table2(21.18, 5.57, 7.99))
_se('se_resnext101_32x4d', stage_sizes=(3, 4, 23, 3), **_32x4d, paper=_table2(20.70, 5.01, 8.00))
_64x4d_paper = PaperResult(20.4, 5.3, 'Table 8')
_plain('resnext101_64x4d', stage_sizes=(3, 4, 23, 3), **_64x4d, paper=_64x4d_paper)
_se('se_resnext101_64x4d', stage_sizes=(3, 4, 23, 3), **_64x4d)
# Table 9's 32x48d had a billion other images first, and no SE.
_32x48d_paper = PaperResult(14.6, 2.4, 'Table 9, extra data')
_plain('resnext101_32x48d', stage_sizes=(3, 4, 23, 3), **_32x48d, paper=_32x48d_paper)
_se('se_resnext101_32x48d', stage_sizes=(3, 4, 23, 3), **_32x48d)

_senet154: Callable[..., None] = partial(
    register,
    module=ResNet,
    stage_sizes=(3, 8, 36, 3),
    **_64x4d,
    block=partial(Bottleneck, halve_first=True),
    stem='deep',
    projection_size=3,
    dropout=0.2,
)
_senet154('senet154_trunk')
_senet154('senet154', se=SqueezeExcite, paper=PaperResult(18.68, 4.47, 'Table 8'))

# timm's (and torchvision's) own lineage: another stride, another pool, another hidden width.
_se8 = partial(SqueezeExcite, hidden_multiple=8)
_timm = partial(register, module=ResNet, stride_in='3x3', pool='padded', zero_init=True)
_timm('timm_resnet18', stage_sizes=(2, 2, 2, 2), block=BasicBlock)
_timm('timm_seresnet18', stage_sizes=(2, 2, 2, 2), block=BasicBlock, se=_se8)
_timm('timm_resnet34', stage_sizes=(3, 4, 6, 3), block=BasicBlock)
_timm('timm_seresnet34', stage_sizes=(3, 4, 6, 3), block=BasicBlock, se=_se8)
_timm('timm_resnet50', stage_sizes=(3, 4, 6, 3))
_timm('timm_seresnet50', stage_sizes=(3, 4, 6, 3), se=_se8)
_timm('timm_resnet101', stage_sizes=(3, 4, 23, 3))
_timm('timm_seresnet101', stage_sizes=(3, 4, 23, 3), se=_se8)
_timm('timm_resnet152', stage_sizes=(3, 8, 36, 3))
_timm('timm_seresnet152', stage_sizes=(3, 8, 36, 3), se=_se8)
_timm('timm_resnext50_32x4d', stage_sizes=(3, 4, 6, 3), **_32x4d)
_timm('timm_seresnext50_32x4d', stage_sizes=(3, 4, 6, 3), **_32x4d, se=_se8)
_timm('timm_resnext101_32x4d', stage_sizes=(3, 4, 23, 3), **_32x4d)
_timm('timm_seresnext101_32x4d', stage_sizes=(3, 4, 23, 3), **_32x4d, se=_se8)
_timm('timm_resnext101_32x8d', stage_sizes=(3, 4, 23, 3), **_32x8d)
_timm('timm_seresnext101_32x8d', stage_sizes=(3, 4, 23, 3), **_32x8d, se=_se8)
_timm('timm_resnext101_32x48d', stage_sizes=(3, 4, 23, 3), **_32x48d)
_timm('timm_resnext101_64x4d', stage_sizes=(3, 4, 23, 3), **_64x4d)
_timm('timm_seresnext101_64x4d', stage_sizes=(3, 4, 23, 3), **_64x4d, se=_se8)
_senet154('timm_senet154', se=_se8, pool='padded', zero_init=True, dropout=0.0)

# timm's legacy line beyond the paper's networks; its further members are the plain names above.
_legacy = partial(register, module=ResNet, se=SqueezeExcite, dropout=0.2)
_extra_relu = partial(BasicBlock, extra_relu=True)
_legacy('timm_legacy_seresnet18', stage_sizes=(2, 2, 2, 2), block=_extra_relu)
_legacy('timm_legacy_seresnet34', stage_sizes=(3, 4, 6, 3), block=_extra_relu)
_legacy('timm_legacy_seresnext26_32x4d', stage_sizes=(2, 2, 2, 2), **_32x4d)

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
