"""RegNetY, and RegNetX without SE (arXiv 2003.13678)."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from se_flax.errors import UserError, check_at_least, check_multiple
from se_flax.models.network import Maps, ResidualNetwork
from se_flax.models.registry import register
from se_flax.models.residual_units import Bottleneck
from se_flax.nn import SqueezeExcite
from se_flax.nn.squeeze_excite import round_channels

STEM = 32  # channels


class RegNetUnit(Bottleneck):
    """ResNet's 1x1, 3x3, 1x1 with `filters` channels throughout."""

    expansion = 1

    @property
    def inner(self) -> int:
        return self.filters


class RegNet(ResidualNetwork):
    """RegNetY with SE, RegNetX without.

    SE follows the 3x3, its BatchNorm and ReLU, and its hidden width is a quarter of the unit's
    input. `placement` moves it elsewhere.

    Attributes:
        widths: channels of each stage.
        group_width: channels per group of the 3x3; a narrower stage is one group.
    """

    stage_sizes: Sequence[int] = (1, 3, 8, 2)
    widths: Sequence[int] = (64, 144, 320, 784)
    group_width: int = 16
    placement: str = 'inside_3x3'

    reduce_input = True

    def __post_init__(self):
        super().__post_init__()
        if len(self.widths) < len(self.stage_sizes):
            raise UserError(f'widths={self.widths} must have {len(self.stage_sizes)} numbers')
        for width in self.widths:
            check_at_least('width in widths', width, 1)
            group_width = min(self.group_width, width)
            check_multiple('width in widths', width, 'group_width', group_width)

    def filters(self, stage: int) -> int:
        return self.widths[stage - 2]

    def trunk(self, x: jax.Array, train: bool) -> Maps:
        x = nn.relu(self.layers(train).conv_norm('_stem', x, STEM, 3, 2))
        yield 2, x

        def unit(layers, filters, strides, name):
            groups = filters // min(self.group_width, filters)
            return RegNetUnit(layers, filters, strides, groups=groups, name=name)

        yield from self.stack(x, 2, unit, train, halve_first=True)


def stages(
    depth: int,
    w_0: int,
    w_a: float,
    w_m: float,
    group_width: int,
    to_groups: Callable[[int, int], int] = lambda width, group: round(width / group) * group,
) -> dict[str, Any]:
    """Returns the fields of a RegNet from its parameters (section 3.3, equations 2 to 4).

    Widths that grow linearly, `w_0 + w_a j`, are moved to the nearest power of `w_m` times `w_0`,
    and to a multiple of 8. Equal ones make a stage; `to_groups` rounds its width to whole groups.

    >>> stages(depth=13, w_0=24, w_a=36.44, w_m=2.49, group_width=8)
    {'stage_sizes': (1, 1, 4, 7), 'widths': (24, 56, 152, 368), 'group_width': 8}
    """
    powers = (round(math.log(1 + w_a * j / w_0, w_m)) for j in range(depth))
    sizes = Counter(round(w_0 * w_m**power / 8) * 8 for power in powers)
    widths = tuple(to_groups(width, min(group_width, width)) for width in sizes)
    return {'stage_sizes': (*sizes.values(),), 'widths': widths, 'group_width': group_width}


# Depth, w_0, w_a, w_m and group width, from the paper's appendix and the networks it released.
_X = {
    '200mf': (13, 24, 36.44, 2.49, 8),
    '400mf': (22, 24, 24.48, 2.54, 16),
    '600mf': (16, 48, 36.97, 2.24, 24),
    '800mf': (16, 56, 35.73, 2.28, 16),
    '1_6gf': (18, 80, 34.01, 2.25, 24),
    '3_2gf': (25, 88, 26.31, 2.25, 48),
    '4gf': (23, 96, 38.65, 2.43, 40),
    '6_4gf': (17, 184, 60.83, 2.07, 56),
    '8gf': (23, 80, 49.56, 2.88, 120),
    '12gf': (19, 168, 73.36, 2.37, 112),
    '16gf': (22, 216, 55.59, 2.1, 128),
    '32gf': (23, 320, 69.86, 2.0, 168),
}
_Y = {
    '200mf': (13, 24, 36.44, 2.49, 8),
    '400mf': (16, 48, 27.89, 2.09, 8),
    '600mf': (15, 48, 32.54, 2.32, 16),
    '800mf': (14, 56, 38.84, 2.4, 16),
    '1_6gf': (27, 48, 20.71, 2.65, 24),
    '3_2gf': (21, 80, 42.63, 2.66, 24),
    '4gf': (22, 96, 31.41, 2.24, 64),
    '6_4gf': (25, 112, 33.22, 2.27, 72),
    '8gf': (17, 192, 76.82, 2.19, 56),
    '12gf': (19, 168, 73.36, 2.37, 112),
    '16gf': (18, 200, 106.23, 2.48, 112),
    '32gf': (20, 232, 115.89, 2.53, 232),
    '128gf': (27, 456, 160.83, 2.52, 264),
}
# torchvision rounds to whole groups otherwise than the paper; timm has both, these by own names.
_OF_THE_PAPER = {
    'x_400mf': 'timm_regnetx_004',
    'y_800mf': 'timm_regnety_008',
    'y_8gf': 'timm_regnety_080',
}
_x = partial(register, module=RegNet, se=None)
_y = partial(register, module=RegNet, se=partial(SqueezeExcite, reduction=4))
for _kind, _make, _points in (('x', _x, _X), ('y', _y, _Y)):
    for _size, _point in _points.items():
        _name, _fields = f'{_kind}_{_size}', stages(*_point)
        if _name in _OF_THE_PAPER:
            _make(_OF_THE_PAPER[_name], **_fields)
            _fields = stages(*_point, round_channels)
        _make(f'regnet_{_name}', **_fields)
