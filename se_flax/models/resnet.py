"""ResNet, ResNeXt, SENet-154, and timm's later variants with SE."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from se_flax.errors import UserError, check_at_least, check_known
from se_flax.models.network import Maps, ResidualNetwork
from se_flax.models.registry import register, register_pair
from se_flax.models.residual_units import STRIDE_IN, BasicBlock, Bottleneck, Unit
from se_flax.nn import EXCITE, SqueezeExcite, avg_pool, max_pool

CHOICES = {
    'stem': ('imagenet', 'deep', 'cifar'),
    'stem_strides': (None, 1, 2, 4),
    'pool': ('caffe', 'padded', 'average', 'conv'),
    'stride_in': STRIDE_IN,
    'projection_size': (1, 3),
}


class ResNet(ResidualNetwork):
    """ResNet and its descendants (arXiv 1512.03385, 1611.05431; SENet-154: appendix).

    Attributes:
        block: BasicBlock or Bottleneck, or a `partial` with that class's own fields.
        width: channels of the stem and filters of stage 2; each further stage doubles them. If it
            is a fraction, the filters of each stage are rounded.
        stem: 'imagenet' (7x7 and a pool, both with stride 2), 'deep' (three 3x3 and the pool) or
            'cifar' (3x3).
        stem_widths: channels of the deep stem's 3x3; empty is `width`, `width`, `2 width`.
        stem_strides: 1, 2 or 4, of the stem's first convolution; None is 1 for 'cifar', else 2.
        pool: of the stem: 'caffe' (unpadded, rounding up), 'padded' (torchvision, timm), 'average'
            (2x2) or 'conv' (a 3x3 with BatchNorm, as in ResNet-RS).
        stride_in: the layer of a Bottleneck that halves the map: '1x1' (Caffe), '3x3' or 'average',
            a 2x2 pool after the 3x3 against aliasing.
        groups, group_width: of a Bottleneck's 3x3; channels per group in stage 2 if `width` is 64.
        projection_size: kernel size of the shortcuts that halve the map; 3 in SENet-154.
        average_shortcut: shortcuts halve the map by a 2x2 average, and their 1x1 has no stride
            (ResNet-D, arXiv 1812.01187).
        zero_init: initializes the last BatchNorm scale of each unit to 0 (arXiv 1706.02677). Not
            for gates that start at 0 (tanh, ReLU) and would never open; `excite_bias` opens them.
    """

    block: Callable[..., Unit] = Bottleneck
    width: float = 64
    stem: str = 'imagenet'
    stem_widths: Sequence[int] = ()
    stem_strides: int | None = None
    pool: str = 'caffe'
    stride_in: str = '1x1'
    groups: int = 1
    group_width: int = 64
    projection_size: int = 1
    average_shortcut: bool = False
    zero_init: bool = False

    def __post_init__(self):
        super().__post_init__()
        for field, known in CHOICES.items():
            check_known(field, getattr(self, field), known)
        if len(self.stem_widths) not in (0, 3):
            raise UserError(f'stem_widths={self.stem_widths} must have 3 numbers, or none')
        for width in self.stem_widths:
            check_at_least('width in stem_widths', width, 1)
        se = getattr(self.se, 'keywords', {})
        excite, bias = se.get('excite'), se.get('excite_bias', 0)
        if self.zero_init and self.placement == 'standard' and excite in EXCITE:
            with jax.ensure_compile_time_eval(), jax.transfer_guard('allow'):
                closed = not EXCITE[excite](jnp.full((), bias, jnp.float32))
            if closed:
                raise UserError(
                    f'zero_init=True does not work with excite={excite!r}: the map and the gate of '
                    'each unit start at 0 and get no gradient; use zero_init=False'
                )

    @property
    def smallest(self) -> int:
        # The pool needs a map of two pixels.
        return 1 if self.stem == 'cifar' else (self.stem_strides or 2) + 1

    def trunk(self, x: jax.Array, train: bool) -> Maps:
        conv_norm, small = self.layers(train).conv_norm, self.stem == 'cifar'
        stride, width = self.stem_strides or (1 if small else 2), round(self.width)
        if self.stem == 'deep':
            widths = self.stem_widths or (width, width, 2 * width)
            for i, (features, strides) in enumerate(zip(widths, (stride, 1, 1), strict=True), 1):
                x = nn.relu(conv_norm(f'_stem{i}', x, features, 3, strides))
        else:
            x = nn.relu(conv_norm('_stem', x, width, 3 if small else 7, stride))
        yield stride, x
        if not small:
            x = self._pooled(x, conv_norm)
            stride *= 2
        block = partial(
            self.block,
            stride_in=self.stride_in,
            groups=self.groups,
            group_width=self.group_width,
            projection_size=self.projection_size,
            average_shortcut=self.average_shortcut,
            last_scale_init=nn.initializers.zeros if self.zero_init else nn.initializers.ones,
        )
        yield from self.stack(x, stride, block, train)

    def _pooled(self, x, conv_norm):
        """Halves the stem's map."""
        if self.pool == 'conv':
            return nn.relu(conv_norm('_pool', x, x.shape[-1], 3, 2))
        if self.pool == 'average':
            return avg_pool(x, 2, 2)
        return max_pool(x, ceil=True) if self.pool == 'caffe' else max_pool(x, padding=1)


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

# ResNet-D (arXiv 1812.01187) and its descendants, those with public weights with SE: another stem
# and shortcut, 't' with a tiered stem, 'aa' against aliasing, ResNet-RS (arXiv 2103.07579).
_201 = (3, 24, 36, 4)
_d: dict[str, Any] = _timm | {'stem': 'deep', 'stem_widths': (32, 32, 64)}
_d['average_shortcut'] = True
_aa = {'pool': 'average', 'stride_in': 'average'}
_timm_se = partial(register, module=ResNet, se=_se8)
_pair('timm_resnet152d', 'timm_seresnet152d', se=_se8, stage_sizes=_152, **_d)
_timm_se('timm_seresnext26d_32x4d', **_d | _resnext(_18, 32, 4))
_timm_se('timm_seresnext26t_32x4d', **_d | _resnext(_18, 32, 4) | {'stem_widths': (24, 32, 64)})
_timm_se('timm_seresnext101d_32x8d', **_d | _resnext(_101, 32, 8))
_timm_se('timm_seresnextaa101d_32x8d', **_d | _resnext(_101, 32, 8) | _aa)
_timm_se('timm_seresnextaa201d_32x8d', **_d | _resnext(_201, 32, 8) | _aa | {'stem_widths': ()})
_rs = _d | {'pool': 'conv', 'se': partial(SqueezeExcite, reduction=4, hidden_multiple=8)}
_rs_sizes = {50: _50, 101: _101, 152: _152, 200: (3, 24, 36, 3)}
_rs_sizes |= {270: (4, 29, 53, 4), 350: (4, 36, 72, 4), 420: (4, 44, 87, 4)}
for _depth, _sizes in _rs_sizes.items():
    register(f'timm_resnetrs{_depth}', module=ResNet, stage_sizes=_sizes, **_rs)

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
