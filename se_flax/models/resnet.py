"""ResNet, ResNeXt and SENet-154."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from se_flax.errors import UserError, check_known
from se_flax.models.network import Layers, Maps, ResidualNetwork
from se_flax.models.registry import register, register_pair
from se_flax.nn import EXCITE, Affine, SqueezeExcite, max_pool, relu_of_sum

CHOICES = {
    'stem': ('imagenet', 'deep', 'cifar'),
    'stem_strides': (None, 1, 2, 4),
    'pool': ('caffe', 'padded'),
    'stride_in': ('1x1', '3x3'),
}


class Unit(nn.Module):
    """Base class of both units; `ResNet` explains the fields."""

    layers: Layers
    filters: int
    strides: int
    stride_in: str
    groups: int
    group_width: int
    projection_size: int
    last_scale_init: Callable[..., Any]

    def join(self, x, y):
        """Adds the shortcut, projected if the shapes differ, and applies the last ReLU."""
        layers = self.layers
        y = layers.drop_path(y.map() if isinstance(y, Affine) else y)
        if x.shape != y.shape:
            # As in SENet-154, only a projection that shrinks the map may be wide.
            size = self.projection_size if self.strides > 1 else 1
            x = layers.conv_norm('_proj', x, y.shape[-1], size, self.strides)
        # After the projection, so that SE has the unit's width (the paper leaves it open).
        x = layers.squeeze_excite('identity', x)
        return layers.squeeze_excite('post', relu_of_sum(y + x))


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

    @nn.compact
    def __call__(self, x):
        layers, last = self.layers, {'affine': True, 'scale_init': self.last_scale_init}
        inner = self.filters * self.group_width // 64 * self.groups
        first = inner // 2 if self.halve_first else inner
        in_1x1 = self.strides if self.stride_in == '1x1' else 1
        y = layers.squeeze_excite('pre', x)
        y = nn.relu(layers.conv_norm(1, y, first, 1, in_1x1))
        y = nn.relu(layers.conv_norm(2, y, inner, 3, self.strides // in_1x1, groups=self.groups))
        y = layers.squeeze_excite('inside_3x3', y)
        y = layers.conv_norm(3, y, 4 * self.filters, **last)
        return self.join(x, layers.squeeze_excite('standard', y))


class ResNet(ResidualNetwork):
    """ResNet and its descendants (arXiv 1512.03385, 1611.05431; SENet-154: appendix).

    Attributes:
        block: BasicBlock or Bottleneck, or a `partial` with that class's own fields.
        width: channels of the stem and filters of stage 2; each further stage doubles them. Of a
            fraction, the filters of each stage are rounded.
        stem: 'imagenet' (7x7 and a pool, both with stride 2), 'deep' (three 3x3, the last twice as
            wide, and the pool) or 'cifar' (3x3).
        stem_strides: 1, 2 or 4, of the stem's first convolution; None is 1 for 'cifar', else 2.
        pool: of the stem: 'caffe' (unpadded, rounding up) or 'padded' (torchvision, timm).
        stride_in: the convolution of a Bottleneck that halves the map: '1x1' (Caffe) or '3x3'.
        groups, group_width: of a Bottleneck's 3x3; channels per group in stage 2 if `width` is 64.
        projection_size: kernel size of the shortcuts that halve the map; 3 in SENet-154.
        zero_init: initializes the last BatchNorm scale of each unit to 0 (arXiv 1706.02677). Not
            for gates that are 0 at 0 (tanh, ReLU), which would never open.
    """

    block: Callable[..., Unit] = Bottleneck
    width: float = 64
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
        for field, known in CHOICES.items():
            check_known(field, getattr(self, field), known)
        excite = getattr(self.se, 'keywords', {}).get('excite')
        if self.zero_init and self.placement == 'standard' and excite in EXCITE:
            with jax.ensure_compile_time_eval(), jax.transfer_guard('allow'):
                closed = not EXCITE[excite](jnp.zeros(()))
            if closed:
                raise UserError(
                    f'zero_init=True does not work with excite={excite!r}: the map and the gate of '
                    'each unit start at 0 and get no gradient; use zero_init=False'
                )

    @property
    def smallest(self) -> int:
        return 1 if self.stem == 'cifar' else 3  # for the unpadded pool

    def trunk(self, x: jax.Array, train: bool) -> Maps:
        conv_norm, small = self.layers(train).conv_norm, self.stem == 'cifar'
        stride, width = self.stem_strides or (1 if small else 2), round(self.width)
        if self.stem == 'deep':
            x = nn.relu(conv_norm('_stem1', x, width, 3, stride))
            x = nn.relu(conv_norm('_stem2', x, width, 3))
            x = nn.relu(conv_norm('_stem3', x, 2 * width, 3))
        else:
            x = nn.relu(conv_norm('_stem', x, width, 3 if small else 7, stride))
        yield stride, x
        if not small:
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
        yield from self.stack(x, stride, block, train)


def _resnext(stage_sizes: tuple[int, ...], groups: int, group_width: int) -> dict[str, Any]:
    fields = {'stage_sizes': stage_sizes, 'groups': groups, 'group_width': group_width}
    return {'stride_in': '3x3', **fields}


_18, _50, _101, _152 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)

# The paper's lineage (Caffe). ResNet-18 and -34 are not in the paper; resnet50 and deeper are its
# re-implementation.
_pair = partial(register_pair, module=ResNet)
_pair('resnet18', stage_sizes=_18, block=BasicBlock)
_pair('resnet34', stage_sizes=_50, block=BasicBlock)
_pair('resnet50', stage_sizes=_50)
_pair('resnet101', stage_sizes=_101)
_pair('resnet152', stage_sizes=_152)
_pair('resnext50_32x4d', **_resnext(_50, 32, 4))
_pair('resnext101_32x4d', **_resnext(_101, 32, 4))
_pair('resnext101_64x4d', **_resnext(_101, 64, 4))
_pair('resnext101_32x48d', **_resnext(_101, 32, 48))
_senet154 = _resnext(_152, 64, 4) | {'stem': 'deep', 'projection_size': 3}
_senet154['block'] = partial(Bottleneck, halve_first=True)
_pair('senet154_trunk', 'senet154', dropout=0.2, **_senet154)

# timm's (and torchvision's) own lineage, with another stride, pool and hidden width.
_timm: dict[str, Any] = {'stride_in': '3x3', 'pool': 'padded', 'zero_init': True}
_se8 = partial(SqueezeExcite, hidden_multiple=8)
_timm_pair = partial(_pair, se=_se8, **_timm)
_timm_pair('timm_resnet18', 'timm_seresnet18', stage_sizes=_18, block=BasicBlock)
_timm_pair('timm_resnet34', 'timm_seresnet34', stage_sizes=_50, block=BasicBlock)
_timm_pair('timm_resnet50', 'timm_seresnet50', stage_sizes=_50)
_timm_pair('timm_resnet101', 'timm_seresnet101', stage_sizes=_101)
_timm_pair('timm_resnet152', 'timm_seresnet152', stage_sizes=_152)
_timm_pair('timm_resnext50_32x4d', 'timm_seresnext50_32x4d', **_resnext(_50, 32, 4))
_timm_pair('timm_resnext101_32x4d', 'timm_seresnext101_32x4d', **_resnext(_101, 32, 4))
_timm_pair('timm_resnext101_32x8d', 'timm_seresnext101_32x8d', **_resnext(_101, 32, 8))
register('timm_resnext101_32x48d', module=ResNet, **_timm | _resnext(_101, 32, 48))
_timm_pair('timm_resnext101_64x4d', 'timm_seresnext101_64x4d', **_resnext(_101, 64, 4))
register('timm_senet154', module=ResNet, se=_se8, **_timm | _senet154)

# timm's legacy networks that are not among the above.
_legacy = partial(register, module=ResNet, se=SqueezeExcite, dropout=0.2)
_extra_relu = partial(BasicBlock, extra_relu=True)
_legacy('timm_legacy_seresnet18', stage_sizes=_18, block=_extra_relu)
_legacy('timm_legacy_seresnet34', stage_sizes=_50, block=_extra_relu)
_legacy('timm_legacy_seresnext26_32x4d', **_resnext(_18, 32, 4))

# Depth 6n + 2 (arXiv 1512.03385, section 4.2) with projections; the SE paper's ResNet-110 is
# preact_resnet110.
_cifar = partial(_pair, block=BasicBlock, width=16, stem='cifar', input_size=32, num_classes=10)
for _n in (1, 2, 3, 5, 7, 9, 18):
    _cifar(f'resnet{6 * _n + 2}_cifar', stage_sizes=(_n, _n, _n))
